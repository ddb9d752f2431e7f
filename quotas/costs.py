"""What serving costs the operator: attempts by tokens, hours of GPUs by time, and the margin left.

Failed attempts cost as well. Not here: what customers pay (``quotas.charging``).
"""

from collections.abc import Mapping, Sequence

import msgspec

from quotas.contracts import HOUR_MS
from quotas.money import MILLION, divide
from quotas.record import AttemptEntry
from quotas.shares import split


class EndpointCost(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-units: per million tokens in and out, and per hour of all its GPUs, busy or not."""

    input_nano: int = 0
    output_nano: int = 0
    hour_nano: int = 0
    currency: str = "USD"


def attempts_cost(
    attempts: Sequence[AttemptEntry], costs: Mapping[int, EndpointCost]
) -> dict[str, int]:
    """Currency -> nano of a record's attempts, each by the tokens its engine worked on."""
    found: dict[str, int] = {}
    for attempt in attempts:
        cost = costs.get(attempt.endpoint_id)
        if cost is None or not (cost.input_nano or cost.output_nano):
            continue
        # One rounding an attempt: an engine works on a prompt once a choice.
        work = (
            attempt.prompt_tokens * max(attempt.choices, 1) * cost.input_nano
            + attempt.completion_tokens * cost.output_nano
        )
        found[cost.currency] = found.get(cost.currency, 0) + divide(work, MILLION)
    return found


def hours_cost(hour_nano: int, milliseconds: int) -> int:
    """Of GPUs that stood there for so long."""
    return divide(hour_nano * milliseconds, HOUR_MS)


def hours_between(hour_nano: int, held_from_ms: int, start_ms: int, end_ms: int) -> int:
    """The part of [start, end) in what GPUs cost that are held since ``held_from_ms``: stretches that
    follow each other sum to the whole, without a rounding each.
    """
    start_ms, end_ms = max(start_ms, held_from_ms), max(end_ms, held_from_ms)
    until_then = hours_cost(hour_nano, start_ms - held_from_ms)
    return hours_cost(hour_nano, end_ms - held_from_ms) - until_then


def spread(cost_nano: int, busy_ms: Mapping[str, int]) -> dict[str, int]:
    """A shared cost over who used it, by time; parts sum to the whole. Nobody: all to "" (idle)."""
    if not any(busy_ms.values()):
        return {"": cost_nano}
    parts = split(cost_nano, list(busy_ms.values()))
    return dict(zip(busy_ms, parts, strict=True))


def margin_ppm(net_nano: int, cost_nano: int) -> int:
    """(net - cost) / net in millionths; 0 where nothing was sold."""
    return divide((net_nano - cost_nano) * MILLION, net_nano) if net_nano > 0 else 0
