"""How many prompt tokens a body will be, learned per model from what the engines counted.

An estimate reserves rate limits; its error becomes debt there, repaid before the next admission.
A ceiling is never below the engine's count and backs hard money. The estimate is a conformal
quantile (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005): where requests
are exchangeable, the next is above the k-th largest of the last n with chance k / (n + 1). Not here:
what a body's text is (``gateway.contract.envelope``), what a template adds (probed).
"""

import math
from bisect import bisect_left, insort
from collections import deque

#: Byte-level BPE vocabularies give 0.2-0.3 tokens a byte of English; a third is on the safe side.
FIRST_RATIO = 1 / 3
#: The share of requests that may turn out to be more than estimated.
BELOW_RARELY = 0.01
#: Counts remembered for each size of body, and how many it takes to believe less than the first.
REMEMBERED = 256
BELIEVED = 32
#: What chat templates add at most, as seen; beyond a prompt's own bytes.
TEMPLATE_TOKENS = 64
#: Short bodies say more about the chat template than about the text, long ones the reverse: bodies
#: are learned by size, each class four times the one before (under 128 bytes ... 128 KiB and more).
CLASSES = 7
_SMALLEST_BITS = 7
#: No body has more bits in its size.
_BITS_MAX = 64
#: Which of so many ratios, from the largest, is rarely exceeded.
_RANKS = tuple([max(1, int(BELOW_RARELY * (count + 1))) for count in range(REMEMBERED + 1)])
#: Where neither the model, nor its context, nor a limit bounds the answer.
UNKNOWN_CAP = 4096


class _Ratios:
    """The last ``REMEMBERED`` ratios of one class, by age and by size."""

    __slots__ = ("ratio", "seen", "sorted")

    def __init__(self) -> None:
        self.ratio = FIRST_RATIO
        self.seen: deque[float] = deque()
        self.sorted: list[float] = []

    def add(self, ratio: float) -> None:
        ranked, seen = self.sorted, self.seen
        seen.append(ratio)
        if len(seen) > REMEMBERED:
            oldest = seen.popleft()
            if oldest == ratio:
                return
            del ranked[bisect_left(ranked, oldest)]
        insort(ranked, ratio)
        count = len(ranked)
        top = ranked[-_RANKS[count]]
        self.ratio = top if count >= BELIEVED else max(FIRST_RATIO, top)


class PromptEstimator:
    """Mutable; one per model. ``estimate`` then ``learn``, in any interleaving."""

    __slots__ = ("_by_bits",)

    def __init__(self) -> None:
        classes = tuple([_Ratios() for _ in range(CLASSES)])
        self._by_bits = tuple([classes[_class_of(bits)] for bits in range(_BITS_MAX + 1)])

    def estimate(self, text_bytes: int) -> int:
        """Tokens to reserve for a prompt of that many bytes: at least 1, too few about 1 in 100."""
        return math.ceil(text_bytes * self._by_bits[text_bytes.bit_length()].ratio) or 1

    def learn(self, text_bytes: int, prompt_tokens: int) -> None:
        """Take in one finished request: the bytes we saw, the tokens the engine counted."""
        if text_bytes > 0 and prompt_tokens > 0:
            self._by_bits[text_bytes.bit_length()].add(prompt_tokens / text_bytes)


def _class_of(bits: int) -> int:
    """The class of a body whose size has so many bits."""
    return min(max((bits - _SMALLEST_BITS + 1) // 2, 0), CLASSES - 1)


def ceiling(
    *,
    prompts: int,
    text_bytes: int | None,
    template_tokens: int | None,
    context_tokens: int | None,
    counted: int | None = None,
) -> int | None:
    """Tokens that all prompts together cannot exceed, or None where nothing bounds them.

    ``text_bytes``: the body's bytes where it is text and nothing else, else None; a byte-level
    vocabulary makes no more tokens than bytes, and a template adds ``template_tokens`` a prompt
    (None = not probed). ``counted``: the engine's own count of this body. A prompt longer than the
    model's context is refused by the engine, so ``context_tokens`` bounds each.

    >>> ceiling(prompts=1, text_bytes=300, template_tokens=40, context_tokens=4096)
    340
    >>> ceiling(prompts=2, text_bytes=None, template_tokens=None, context_tokens=4096)
    8192
    """
    bounds = [] if counted is None else [counted]
    if text_bytes is not None and template_tokens is not None:
        bounds.append(text_bytes + prompts * template_tokens)
    if context_tokens is not None:
        bounds.append(prompts * context_tokens)
    return min(bounds, default=None)


class Plan:
    """What a request reserves, in tokens. ``output`` = sequences x ``cap``; ``reserve`` = estimate
    and output; ``prompt_ceiling`` None: nothing bounds the prompt; ``inject_cap``: the cap to write
    into the body, or None.
    """

    __slots__ = ("cap", "inject_cap", "output", "prompt_ceiling", "prompt_estimate", "reserve")

    def __init__(
        self,
        prompt_estimate: int,
        cap: int,
        output: int,
        inject_cap: int | None,
        prompt_ceiling: int | None = None,
    ) -> None:
        self.prompt_estimate = prompt_estimate
        self.cap = cap
        self.output = output
        self.reserve = prompt_estimate + output
        self.inject_cap = inject_cap
        self.prompt_ceiling = prompt_ceiling


def plan(
    *,
    prompt_estimate: int,
    prompt_bytes: int = 0,
    prompt_ceiling: int | None = None,
    sequences: int,
    explicit_cap: int | None,
    default_cap: int | None,
    model_cap: int | None,
    context_tokens: int | None,
    tightest_tokens: int | None,
    tightest_output: int | None = None,
) -> Plan:
    """Reserve = prompt + sequences x cap, where sequences = prompts x max(n, best_of).

    The cap is the caller's; else the operation's own default (16 on /v1/completions, injected
    nowhere, 0 for embeddings); else the model's, cut to what context and the tightest limit can ever
    grant, and injected. ``tightest_tokens`` and ``tightest_output``: the smallest capacity among
    limits on all tokens, and among limits on output, money included.
    A cap of 0 is only ever the operation's own; where nothing is left the cap is 1, and the
    reservation then says that it can never fit.

    >>> made = plan(prompt_estimate=100, sequences=2, explicit_cap=None, default_cap=None,
    ...             model_cap=8192, context_tokens=4096, tightest_tokens=1100)
    >>> made.cap, made.reserve, made.inject_cap
    (500, 1100, 500)
    """
    given = explicit_cap if explicit_cap is not None else default_cap
    if given is not None:
        return Plan(prompt_estimate, given, sequences * given, None, prompt_ceiling)
    room = [] if model_cap is None else [model_cap]
    if context_tokens is not None:
        # An injected cap must fit beside the prompt as the engine will count it: no more tokens
        # than bytes, nor twice the estimate, and the chat template's own.
        bound = min(prompt_bytes, 2 * prompt_estimate) + TEMPLATE_TOKENS
        room.append(context_tokens - max(prompt_estimate, bound))
    if tightest_tokens is not None:
        room.append((tightest_tokens - prompt_estimate) // sequences)
    if tightest_output is not None:
        room.append(tightest_output // sequences)
    cap = max(1, min(room)) if room else UNKNOWN_CAP
    return Plan(prompt_estimate, cap, sequences * cap, cap, prompt_ceiling)
