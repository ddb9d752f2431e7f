"""Prices as values, and what a request costs at one: record and price in, lines out.

A price is one immutable version of a price book: what a tier of a model costs one tenant, or all.
It is frozen at admission, so rating is a function of record and price alone: the same lines
whenever it is run again. A line is one rounding; a total is the sum of its lines. Not here: which
counts are billed when a request ends badly (``quotas.settlement``), what a contract makes of the
total (``quotas.charging``), rows (``gateway.store.catalog``).
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from quotas.meters import (
    CACHED_INPUT,
    INPUT,
    INPUT_METERS,
    OUTPUT,
    OUTPUT_METERS,
    PER,
    REQUESTS,
    units_of,
)
from quotas.money import MILLION, divide, divide_up
from quotas.usage import TokenUsage

#: The meters of a price of which nothing is known any more: what was cached stays apart.
METERS = (INPUT, CACHED_INPUT, OUTPUT)
DEFAULT_TIER = "default"
HOURS = 24
MINUTE_MS = 60_000


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One meter's price under a condition, in place of the unconditional one.

    ``over_context_tokens``: for requests whose prompt is longer. ``hours``: local hours [from, to)
    in which the request was admitted, over midnight where from > to. Both hold, or it does not
    apply; of several that apply the highest context wins, then the one with hours.
    """

    meter: str
    nano: int
    over_context_tokens: int = -1
    hours: tuple[int, int] | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a price. ``nano`` maps meter to nano-units per million tokens or per unit.

    ``multiplier_ppm`` scales every line: 500,000 is half price. Times are Unix ms; ``tenant_id`` 0
    means everybody, ``until_ms`` 0 for ever.
    """

    id: int
    version: int
    currency: str
    nano: dict[str, int]
    conditional: tuple[Rate, ...] = ()
    tier: str = DEFAULT_TIER
    multiplier_ppm: int = MILLION
    time_zone: str = "UTC"
    tenant_id: int = 0
    from_ms: int = 0
    until_ms: int = 0

    def in_force(self, at_ms: int) -> bool:
        return self.from_ms <= at_ms and (not self.until_ms or at_ms < self.until_ms)


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One meter of one record: ``amount`` = units x nano x multiplier / per, half to even."""

    meter: str
    units: int
    nano: int
    amount: int


class Ceiling(msgspec.Struct, frozen=True, array_like=True):
    """The dearest that a price can be: nano-units per million tokens in and out, and per request.

    ``slack`` covers the roundings of a request's lines.
    """

    input: int
    output: int
    request: int
    slack: int

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Nano-units that no request within these tokens can exceed, whatever its meters."""
        tokens = prompt_tokens * self.input + completion_tokens * self.output
        return divide_up(tokens, MILLION) + self.request + self.slack


#: Most prices name input and output alone.
_USUAL_METERS = 2


def billed_meters(
    usage: TokenUsage, meters: Collection[str], operation: str = "chat"
) -> dict[str, int]:
    """Units by meter. A price without ``cached_input`` counts cached tokens as input.

    >>> billed_meters(TokenUsage(prompt=10, cached=4, completion=2), ("input", "output"))
    {'input': 10, 'output': 2}
    """
    if (
        len(meters) == _USUAL_METERS
        and operation == "chat"
        and INPUT in meters
        and OUTPUT in meters
    ):
        return {INPUT: usage.prompt, OUTPUT: usage.completion}
    return units_of(usage.meters(), meters, operation)


def rate(
    price: Price, usage: Mapping[str, int], operation: str, started_ms: int
) -> tuple[Line, ...]:
    """The lines of one record: ``usage`` and times as the record has them."""
    units = units_of(usage, price.nano, operation)
    nano: Mapping[str, int] = price.nano
    if price.conditional:
        nano = _rates_then(price, usage.get("prompt_tokens", 0), started_ms)
    scale = price.multiplier_ppm
    lines = []
    for meter, count in units.items():
        each = nano.get(meter, 0)
        amount = divide(count * each * scale, PER[meter] * MILLION)
        lines.append(Line(meter, count, each, amount))
    return tuple(lines)


def total(lines: tuple[Line, ...]) -> int:
    """Nano-units."""
    return sum(line.amount for line in lines)


def ceiling(price: Price) -> Ceiling:
    """What to hold for a request before its meters are known. Compute once a price."""
    dearest = dict(price.nano)
    for each in price.conditional:
        dearest[each.meter] = max(dearest.get(each.meter, 0), each.nano)
    scaled = {
        meter: divide_up(nano * price.multiplier_ppm, MILLION) for meter, nano in dearest.items()
    }
    return Ceiling(
        max((scaled.get(meter, 0) for meter in INPUT_METERS), default=0),
        max((scaled.get(meter, 0) for meter in OUTPUT_METERS), default=0),
        scaled.get(REQUESTS, 0),
        len(PER),
    )


def _rates_then(price: Price, prompt_tokens: int, started_ms: int) -> dict[str, int]:
    """Meter -> nano under the conditions of the moment."""
    hour = _hour_of(price.time_zone, started_ms // MINUTE_MS)
    found = dict(price.nano)
    best: dict[str, tuple[int, bool]] = {}
    for each in price.conditional:
        if prompt_tokens <= each.over_context_tokens or not _within(each.hours, hour):
            continue
        rank = (each.over_context_tokens, each.hours is not None)
        if rank >= best.get(each.meter, (-2, False)):
            best[each.meter] = rank
            found[each.meter] = each.nano
    return found


@lru_cache(maxsize=10_000)
def _hour_of(time_zone: str, minute: int) -> int:
    """Zones are whole minutes apart."""
    return datetime.fromtimestamp(minute * 60, ZoneInfo(time_zone)).hour


def _within(hours: tuple[int, int] | None, hour: int) -> bool:
    if hours is None:
        return True
    start, end = hours
    return start <= hour < end if start < end else hour >= start or hour < end


def conflict(conditional: tuple[Rate, ...]) -> str | None:
    """The meter of two conditions that could both be the answer; None when each moment has one."""
    taken: set[tuple[str, int, bool, int]] = set()
    for each in conditional:
        for hour in range(HOURS):
            if not _within(each.hours, hour):
                continue
            cell = (each.meter, each.over_context_tokens, each.hours is not None, hour)
            if cell in taken:
                return each.meter
            taken.add(cell)
    return None
