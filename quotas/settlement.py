"""What an ended request bills: the table of endings, walked by one pure function.

An ending is how it ended, what the engine had counted, and whether a token had reached the
client. Failed attempts before the last are no ending: they cost, and bill nothing. Not here:
meters and prices (``quotas.pricing``), limits (``quotas.store``).

Rules behind the rows: zero is a value and None is not zero; the engine's own count wins over any
of ours; who leaves pays what was made for them; nobody pays for an answer that never began.
"""

from enum import StrEnum  # hashed by C, not by Python

import msgspec

from quotas.record import Outcome, Source, UsageRecord
from quotas.usage import TokenUsage


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """``cause``: how it ended ("ok" = the engine finished). Counts are None when none was seen.

    ``final``: the counts are of the final usage frame or the unary body. ``delivered``: a token
    was handed to the client's socket. ``void_finish``: finished with an error or an empty finish.
    """

    cause: Outcome
    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0
    final: bool = False
    delivered: bool = False
    void_finish: bool = False


class Settled(msgspec.Struct, frozen=True):
    """The billed counts, where they come from, and the outcome as the record names it."""

    usage: TokenUsage
    source: Source
    outcome: Outcome


class Case(StrEnum):
    """An ending, narrowed to what decides the bill."""

    FINISHED = "finished"
    FINISHED_VOID = "finished with 0 completion and an error or empty finish"
    LEFT = "client left, drained or revoked, after tokens"
    LEFT_EARLY = "client left, drained or revoked, before tokens (or unary)"
    BROKE = "engine error, cut, stall, timeout or gateway killed, after tokens"
    BROKE_EARLY = "the same before tokens"
    REFUSED = "the engine answered 4xx"


class Seen(StrEnum):
    """What the engine had said by then."""

    FINAL = "final"
    PARTIAL = "per chunk"
    NONE = "none"


class Bill(StrEnum):
    """What a row bills."""

    COUNTED = "the counts seen"
    MADE_UP = "prompt and text as /tokenize counts them, else the estimates"
    PROMPT_ONLY = "the prompt as /tokenize counts it, else its estimate; 0 completion"
    NOTHING = "nothing"


_SOURCE_OF_COUNT: dict[Seen, Source] = {Seen.FINAL: "engine_final", Seen.PARTIAL: "engine_partial"}
_LEAVERS: frozenset[Outcome] = frozenset(("client_abort", "shutdown", "key_revoked"))

TABLE: dict[tuple[Case, Seen], Bill] = {
    (Case.FINISHED, Seen.FINAL): Bill.COUNTED,
    (Case.FINISHED, Seen.PARTIAL): Bill.COUNTED,
    (Case.FINISHED, Seen.NONE): Bill.MADE_UP,
    (Case.FINISHED_VOID, Seen.FINAL): Bill.NOTHING,
    (Case.FINISHED_VOID, Seen.PARTIAL): Bill.NOTHING,
    (Case.FINISHED_VOID, Seen.NONE): Bill.NOTHING,
    (Case.LEFT, Seen.FINAL): Bill.COUNTED,
    (Case.LEFT, Seen.PARTIAL): Bill.COUNTED,
    (Case.LEFT, Seen.NONE): Bill.MADE_UP,
    (Case.LEFT_EARLY, Seen.FINAL): Bill.COUNTED,
    (Case.LEFT_EARLY, Seen.PARTIAL): Bill.COUNTED,
    (Case.LEFT_EARLY, Seen.NONE): Bill.PROMPT_ONLY,
    (Case.BROKE, Seen.FINAL): Bill.COUNTED,
    (Case.BROKE, Seen.PARTIAL): Bill.COUNTED,
    (Case.BROKE, Seen.NONE): Bill.MADE_UP,
    (Case.BROKE_EARLY, Seen.FINAL): Bill.NOTHING,
    (Case.BROKE_EARLY, Seen.PARTIAL): Bill.NOTHING,
    (Case.BROKE_EARLY, Seen.NONE): Bill.NOTHING,
    (Case.REFUSED, Seen.FINAL): Bill.NOTHING,
    (Case.REFUSED, Seen.PARTIAL): Bill.NOTHING,
    (Case.REFUSED, Seen.NONE): Bill.NOTHING,
}
# Found once: in Python 3.11 a member is looked up by a call.
_FINISHED, _FINISHED_VOID, _REFUSED = Case.FINISHED, Case.FINISHED_VOID, Case.REFUSED
_LEFT, _LEFT_EARLY, _BROKE, _BROKE_EARLY = Case.LEFT, Case.LEFT_EARLY, Case.BROKE, Case.BROKE_EARLY
_FINAL, _PARTIAL, _NONE = Seen.FINAL, Seen.PARTIAL, Seen.NONE
_NOTHING, _COUNTED, _PROMPT_ONLY = Bill.NOTHING, Bill.COUNTED, Bill.PROMPT_ONLY


def settle(
    ending: Ending,
    *,
    tokenized: int | None = None,
    estimate: int = 0,
    tokenized_completion: int | None = None,
    completion_estimate: int = 0,
) -> Settled:
    """Bill one ending. The keywords are used only where the engine counted nothing.

    ``tokenized`` and ``tokenized_completion``: the prompt and the delivered text as the engine's
    /tokenize counts them, None when it was not asked; the estimates stand in for them.
    """
    case, seen = _case(ending), _seen(ending)
    bill = TABLE[case, seen]
    outcome: Outcome = "engine_error" if case is _FINISHED_VOID else ending.cause
    if bill is _NOTHING:
        void = case is _FINISHED_VOID
        return Settled(TokenUsage(), "engine_final" if void else "none", outcome)
    if bill is _COUNTED:
        counted = TokenUsage(
            ending.prompt or 0, ending.cached, ending.completion or 0, ending.reasoning
        )
        return Settled(counted, _SOURCE_OF_COUNT[seen], outcome)
    prompt, sources = _first(ending.prompt, tokenized, estimate)
    if bill is _PROMPT_ONLY:
        return Settled(TokenUsage(prompt=prompt), sources, outcome)
    completion, of_text = _first(ending.completion, tokenized_completion, completion_estimate)
    weaker: Source = "estimated" if "estimated" in (sources, of_text) else "tokenized"
    return Settled(TokenUsage(prompt=prompt, completion=completion), weaker, outcome)


def finished(prompt: int, completion: int, cached: int, reasoning: int) -> Settled:
    """What ``settle`` makes of what nearly every ending is: finished, by the engine's final counts,
    with tokens made. It is called at the end of every request, without an ``Ending``.
    """
    return Settled(TokenUsage(prompt, cached, completion, reasoning), "engine_final", "ok")


def unbilled_ms(record: UsageRecord) -> int:
    """Engine time, in ms, of an ending that billed nothing; 0 where anything was billed.

    Attempts are summed: each of them kept an engine busy. A crash's last attempt, whose end nobody
    saw, counts 0.
    """
    if any(record.billed.values()):
        return 0
    return sum(max(0, each.ended_ms - each.started_ms) for each in record.attempts)


def _case(ending: Ending) -> Case:
    if ending.cause == "ok":
        void = ending.void_finish and not ending.completion
        return _FINISHED_VOID if void else _FINISHED
    if ending.cause == "refused_by_engine":
        return _REFUSED
    if ending.cause in _LEAVERS:
        return _LEFT if ending.delivered else _LEFT_EARLY
    return _BROKE if ending.delivered else _BROKE_EARLY


def _seen(ending: Ending) -> Seen:
    """A final frame may lack a completion count (embeddings); a chunk has both or counts nothing."""
    if ending.prompt is None:
        return _NONE
    if ending.final:
        return _FINAL
    return _NONE if ending.completion is None else _PARTIAL


def _first(seen: int | None, tokenized: int | None, estimate: int) -> tuple[int, Source]:
    """The best number at hand; one seen beside one missing is named by the missing one."""
    if seen is not None:
        return seen, "tokenized"
    if tokenized is not None:
        return tokenized, "tokenized"
    return estimate, "estimated"
