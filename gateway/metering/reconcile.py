"""Engine counters against what records say that engines were asked. Pure arithmetic.

    engine prompt     = sum over attempts of prompt x choices      + probes
    engine generation = sum over attempts of counted completion    + probes + residue of aborts

vLLM counts a prompt once a choice, and counts probes, failed attempts and aborted work like any other.
What an attempt cost is known to the token when its answer ended well; of one cut short only what was
seen, and no more than it was allowed to make. So each attempt claims a range, and a counter is explained
when it lies within the sum of them. Between two moments at which the engine stood still with nothing
running, and without cut answers, that range is one number. All of the arithmetic is on this one long page.
Not here: scrapes, SQL (``gateway.control``).
"""

from collections.abc import Iterable

import msgspec

from gateway.metering.slots import SlotImage, SlotState
from quotas.estimate import TEMPLATE_TOKENS
from quotas.record import AttemptEntry, UsageRecord

#: Tokens of a choice that an engine makes between the last frame we read and its seeing that we left.
RESIDUE_TOKENS = 32
#: An engine counts the tokens of a step a moment after it has sent them.
LAG_MS = 2_000
#: A choice of a record that does not say its cap (an older version wrote it).
CAP_UNKNOWN = 4_096
#: A probe whose answer did not say: one short message, one token.
PROBE_PROMPT_MAX = 64
#: Requests named in a report; the rest are counted.
NAMED_MAX = 200
_BUSY_STATUSES = (429, 503)


class Range(msgspec.Struct, frozen=True):
    """Tokens, from ``low`` to ``high``."""

    low: int
    high: int

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    @property
    def room(self) -> int:
        return self.high - self.low

    def distance(self, value: int) -> int:
        """How far a value lies above (or, negative, below) the range; 0 within."""
        if value > self.high:
            return value - self.high
        return min(0, value - self.low)


NOTHING = Range(0, 0)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's own counters at one moment (Unix ms).

    ``quiet_since_ms``: nothing ran and no counter moved from then to ``at_ms``; equal to it where
    something ran. ``started_ms`` tells one life of the engine from another; 0 = it does not say.
    """

    endpoint: str
    at_ms: int
    quiet_since_ms: int
    started_ms: int
    prompt: int
    generation: int

    @property
    def idle(self) -> bool:
        return self.quiet_since_ms < self.at_ms


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt may have added to an engine's counters. ``ended_ms`` None: nobody saw its end.

    ``reason`` says why the range has room, empty where it has none.
    """

    request_id: str
    endpoint: str
    started_ms: int
    ended_ms: int | None
    prompt: Range
    generation: Range
    reason: str = ""


class Explained(msgspec.Struct, frozen=True):
    """A request whose true cost is not known to the token: where a difference may come from."""

    request_id: str
    reason: str
    prompt: Range
    generation: Range


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint between two points. ``engine_*``: what its counters grew by.

    ``difference_*``: tokens by which they grew more (or, negative, less) than all claims allow; 0 =
    explained. ``exact``: it stood still at both points. ``explained_by``: the requests with room,
    largest first, at most ``NAMED_MAX`` of ``with_room``.
    """

    endpoint: str
    from_ms: int
    to_ms: int
    exact: bool
    attempts: int
    probes: int
    engine_prompt: int
    engine_generation: int
    prompt: Range
    generation: Range
    difference_prompt: int
    difference_generation: int
    with_room: int
    explained_by: tuple[Explained, ...]


class Reckoning:
    """Mutable: claims are added one by one, so that an hour of records need not be held."""

    def __init__(self, first: Point, last: Point) -> None:
        assert first.endpoint == last.endpoint
        self._first = first
        self._last = last
        self._prompt = self._generation = NOTHING
        self._attempts = self._probes = 0
        self._open: list[Explained] = []
        self._with_room = 0

    def add(self, claim: Claim) -> None:
        """Take in a claim, as far as it lies between the points; others are left out."""
        if claim.endpoint != self._first.endpoint:
            return
        after, before = _is_after(claim, self._first), _is_before(claim, self._last)
        if after is False or before is False:
            return
        prompt, generation, reason = claim.prompt, claim.generation, claim.reason
        if after is None or before is None:
            prompt, generation = Range(0, prompt.high), Range(0, generation.high)
            reason = reason or "on its way at a scrape"
        self._prompt += prompt
        self._generation += generation
        self._attempts += bool(claim.request_id)
        self._probes += not claim.request_id
        if prompt.room or generation.room:
            self._note(Explained(claim.request_id, reason, prompt, generation))

    def report(self) -> Report:
        first, last = self._first, self._last
        grown = (last.prompt - first.prompt, last.generation - first.generation)
        return Report(
            endpoint=first.endpoint,
            from_ms=first.at_ms,
            to_ms=last.at_ms,
            exact=first.idle and last.idle,
            attempts=self._attempts,
            probes=self._probes,
            engine_prompt=grown[0],
            engine_generation=grown[1],
            prompt=self._prompt,
            generation=self._generation,
            difference_prompt=self._prompt.distance(grown[0]),
            difference_generation=self._generation.distance(grown[1]),
            with_room=self._with_room,
            explained_by=tuple(sorted(self._open, key=_room, reverse=True)[:NAMED_MAX]),
        )

    def _note(self, explained: Explained) -> None:
        self._with_room += 1
        self._open.append(explained)
        if len(self._open) > 4 * NAMED_MAX:
            self._open = sorted(self._open, key=_room, reverse=True)[:NAMED_MAX]


def claims_of(record: UsageRecord) -> list[Claim]:
    """One claim an attempt."""
    last = len(record.attempts) - 1
    claims = []
    for number, attempt in enumerate(record.attempts):
        final = number == last and record.source == "engine_final" and record.outcome == "ok"
        crashed = number == last and record.outcome == "gateway_crash"
        if number < last:
            reason = f"an attempt before the last, status {attempt.status}"
        else:
            reason = record.outcome
        prompt, generation = _cost(record, attempt, final=final, last=number == last)
        claims.append(
            Claim(
                request_id=record.request_id,
                endpoint=attempt.endpoint,
                started_ms=attempt.started_ms,
                ended_ms=None if crashed else attempt.ended_ms,
                prompt=prompt,
                generation=generation,
                reason="" if not prompt.room and not generation.room else reason,
            )
        )
    return claims


def claim_of_slot(image: SlotImage, endpoint: str) -> Claim | None:
    """A request still open: its last attempt, at most what it may still cost; None: not sent yet."""
    if image.state not in (SlotState.DISPATCHED, SlotState.ENDED) or not image.attempts:
        return None
    prompts_high = _estimated(image.estimate, image.prompts)
    if image.progress is not None:
        prompts_high = max(prompts_high, image.progress.prompt)
    return Claim(
        request_id=image.request_id,
        endpoint=endpoint,
        started_ms=image.started_ms + image.attempts[-1].started_ms,
        ended_ms=None,
        prompt=Range(0, prompts_high * image.choices),
        generation=Range(0, image.cap * image.prompts * image.choices),
        reason="not ended yet",
    )


def claim_of_probe(
    endpoint: str, started_ms: int, ended_ms: int | None, counted: tuple[int, int] | None
) -> Claim:
    """Our own question about usage. ``counted``: prompt and completion, None where nobody said."""
    if counted is None:
        prompt, generation = Range(0, PROBE_PROMPT_MAX), Range(0, 1)
    else:
        prompt, generation = Range(counted[0], counted[0]), Range(counted[1], counted[1])
    return Claim(
        request_id="",
        endpoint=endpoint,
        started_ms=started_ms,
        ended_ms=ended_ms,
        prompt=prompt,
        generation=generation,
        reason="" if counted else "a probe",
    )


def _cost(
    record: UsageRecord, attempt: AttemptEntry, *, final: bool, last: bool
) -> tuple[Range, Range]:
    """What an attempt cost its engine, prompt and generation."""
    seen_prompt, seen = attempt.prompt_tokens, attempt.completion_tokens
    choices = max(1, attempt.choices)
    if final:
        whole = seen_prompt * choices
        return Range(whole, whole), Range(seen, seen)
    refused = 400 <= attempt.status < 500 or attempt.status in _BUSY_STATUSES  # noqa: PLR2004 -- HTTP classes
    if refused and not seen_prompt:
        return NOTHING, NOTHING
    sequences = choices * record.prompts
    cap = CAP_UNKNOWN if not record.cap and record.operation != "embeddings" else record.cap
    if not seen_prompt and not seen:
        prompt = Range(0, _unseen_prompt(record, last=last) * choices)
        return prompt, Range(0, cap * sequences)
    prompts_high = seen_prompt
    if record.prompts > 1:  # some of them may not have spoken yet
        prompts_high = max(seen_prompt, _estimated(record.prompt_estimate, record.prompts))
    high = max(seen, min(cap * sequences, seen + RESIDUE_TOKENS * sequences))
    return Range(seen_prompt, prompts_high * choices), Range(seen, high)


def _unseen_prompt(record: UsageRecord, *, last: bool) -> int:
    """At most so many prompt tokens, where the engine said nothing."""
    if last and record.source == "tokenized":
        return record.usage.get("prompt_tokens", 0)
    estimate = record.prompt_estimate or record.usage.get("prompt_tokens", 0)
    return _estimated(estimate, record.prompts)


def _estimated(estimate: int, prompts: int) -> int:
    """Twice an estimate and a chat template for each prompt, as admission bounds it too."""
    return 2 * estimate + TEMPLATE_TOKENS * prompts


def _is_after(claim: Claim, point: Point) -> bool | None:
    """Whether the engine counted it after the point; None: it may be on either side."""
    if claim.started_ms >= point.at_ms:
        return True
    if not point.idle:
        ended = claim.ended_ms
        return False if ended is not None and ended <= point.at_ms - LAG_MS else None
    if claim.started_ms < point.quiet_since_ms:
        # The engine was done with it, or had not seen it yet.
        return False if claim.ended_ms is None or claim.ended_ms <= point.at_ms else None
    return True if claim.ended_ms is None or claim.ended_ms > point.at_ms else None


def _is_before(claim: Claim, point: Point) -> bool | None:
    after = _is_after(claim, point)
    return None if after is None else not after


def _room(explained: Explained) -> int:
    return explained.prompt.room + explained.generation.room


def total(reports: Iterable[Report]) -> tuple[int, int]:
    """Unexplained tokens of several reports, prompt and generation, without their signs."""
    known = list(reports)
    return (
        sum(abs(each.difference_prompt) for each in known),
        sum(abs(each.difference_generation) for each in known),
    )
