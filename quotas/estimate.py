"""How many prompt tokens a body will be, learned per model from what the engines counted.

An estimate reserves rate limits; its error becomes debt there, repaid before the next admission. It
is not a ceiling and must never back hard money. The smoothing (mean and mean deviation with fixed
gains) is the one TCP uses for round-trip times: Jacobson, "Congestion Avoidance and Control", 1988.
"""

import math

#: Byte-level BPE vocabularies give 0.2-0.3 tokens a byte of English; a third is on the safe side.
FIRST_RATIO = 1 / 3
MEAN_GAIN = 1 / 16
DEVIATION_GAIN = 1 / 8
#: What chat templates add at most, as seen; beyond a prompt's own bytes.
TEMPLATE_TOKENS = 64
#: Shorter bodies say more about the chat template than about the text.
LEARN_FROM_BYTES = 64


class PromptEstimator:
    """Mutable; one per model. ``estimate`` then ``learn``, in any interleaving."""

    __slots__ = ("_deviation", "_mean", "_seen")

    def __init__(self) -> None:
        self._mean = FIRST_RATIO
        self._deviation = 0.0
        self._seen = False

    def estimate(self, body_bytes: int) -> int:
        """Tokens to reserve for a body of that many bytes: at least 1."""
        return max(1, math.ceil(body_bytes * (self._mean + self._deviation)))

    def learn(self, body_bytes: int, prompt_tokens: int) -> None:
        """Take in one finished request: the bytes we saw, the tokens the engine counted."""
        if body_bytes < LEARN_FROM_BYTES or prompt_tokens <= 0:
            return
        ratio = prompt_tokens / body_bytes
        if not self._seen:
            self._seen = True
            self._mean = ratio
            self._deviation = ratio / 4
            return
        error = ratio - self._mean
        self._mean += MEAN_GAIN * error
        self._deviation += DEVIATION_GAIN * (abs(error) - self._deviation)


class Plan:
    """What a request reserves, in tokens. ``inject_cap``: the cap to write into the body, or None."""

    __slots__ = ("cap", "inject_cap", "prompt_estimate", "reserve")

    def __init__(
        self, prompt_estimate: int, cap: int, reserve: int, inject_cap: int | None
    ) -> None:
        self.prompt_estimate = prompt_estimate
        self.cap = cap
        self.reserve = reserve
        self.inject_cap = inject_cap


def plan(
    *,
    prompt_estimate: int,
    prompt_bytes: int = 0,
    sequences: int,
    explicit_cap: int | None,
    default_cap: int | None,
    model_cap: int | None,
    context_tokens: int | None,
    tightest_tokens: int | None,
) -> Plan:
    """Reserve = prompt + sequences x cap, where sequences = prompts x max(n, best_of).

    The cap is the caller's; else the operation's own default (16 on /v1/completions, injected
    nowhere, 0 for embeddings); else the model's, cut to what context and the tightest token limit
    can ever grant, and injected. ``tightest_tokens`` is the smallest capacity among token limits.
    A cap of 0 is only ever the operation's own; where nothing is left the cap is 1, and the
    reservation then says that it can never fit.

    >>> made = plan(prompt_estimate=100, sequences=2, explicit_cap=None, default_cap=None,
    ...             model_cap=8192, context_tokens=4096, tightest_tokens=1100)
    >>> made.cap, made.reserve, made.inject_cap
    (500, 1100, 500)
    """
    if explicit_cap is not None:
        return Plan(prompt_estimate, explicit_cap, prompt_estimate + sequences * explicit_cap, None)
    if default_cap is not None:
        return Plan(prompt_estimate, default_cap, prompt_estimate + sequences * default_cap, None)
    room = [] if model_cap is None else [model_cap]
    if context_tokens is not None:
        # An injected cap must fit beside the prompt as the engine will count it: no more tokens
        # than bytes, nor twice the estimate, and the chat template's own.
        bound = min(prompt_bytes, 2 * prompt_estimate) + TEMPLATE_TOKENS
        room.append(context_tokens - max(prompt_estimate, bound))
    if tightest_tokens is not None:
        room.append((tightest_tokens - prompt_estimate) // sequences)
    cap = max(1, min(room)) if room else UNKNOWN_CAP
    return Plan(prompt_estimate, cap, prompt_estimate + sequences * cap, cap)


#: Where neither the model, nor its context, nor a limit bounds the answer.
UNKNOWN_CAP = 4096
