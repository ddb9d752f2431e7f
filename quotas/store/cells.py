"""Levels in this process: a cell is one level with the limit it was last charged under.

Not here: which cells a request charges (``quotas.store.plans``), what is done with them
(``quotas.store.memory``), the arithmetic (``quotas.buckets``, ``quotas.tallies``).
"""

from quotas.buckets import NEVER, TICKS, UNTOUCHED_MS, fits, shown, wait_ms
from quotas.limits import Algorithm, Charge, Gauge, Holder, Level, Limit
from quotas.reservation import LEASE_MS
from quotas.tallies import GUESS_MS, Look, Purse, Tally, period_now

#: The name of the one process there is, as ``inspect`` shows who holds.
OWNER = "this process"
ALL = "all"


class Rate:
    """A bucket as ``quotas.buckets.Bucket``, counted from above: ``missing`` ticks until it is full, at
    ``at_ms``. Most lack little of much, and small integers are quick.
    """

    __slots__ = ("at_ms", "capacity", "full", "limit", "missing", "per_minute")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.capacity = limit.capacity
        self.per_minute = limit.per_minute
        self.full = limit.capacity * TICKS
        self.missing = 0
        self.at_ms = UNTOUCHED_MS

    def adopt(self, limit: Limit, now_ms: int) -> None:
        """Go on under a limit's figures as they are now; the same figures move nothing.

        A change is not retroactive: what flowed in before did so at the old rate, usage is kept and a
        surplus is cut. An untouched bucket stays so, and full.
        """
        self.limit = limit
        if limit.capacity == self.capacity and limit.per_minute == self.per_minute:
            return
        full = limit.capacity * TICKS
        if self.at_ms != UNTOUCHED_MS:
            self.missing = max(0, self.lacking(now_ms) + full - self.full)
            self.at_ms = now_ms
        self.capacity, self.per_minute, self.full = limit.capacity, limit.per_minute, full

    def touch(self, limit: Limit) -> None:
        """An untouched bucket is full under the limit's figures as they are now."""
        if self.at_ms == UNTOUCHED_MS:
            self.adopt(limit, 0)

    def under(self, limit: Limit, now_ms: int) -> "Rate":
        """A copy, as it would go on under the limit."""
        copy = Rate(self.limit)
        copy.capacity, copy.per_minute, copy.full = self.capacity, self.per_minute, self.full
        copy.missing, copy.at_ms = self.missing, self.at_ms
        copy.adopt(limit, now_ms)
        return copy

    def look(self, charge: Charge, now_ms: int) -> Look:
        """What the charge would get; changes nothing but a clock that stepped back."""
        amount = charge.amount
        level = self.full - self.lacking(now_ms)
        wait = wait_ms(level, amount, self.capacity, self.per_minute)
        seen = shown(level, self.capacity, self.per_minute)
        if fits(level, amount):
            return seen, 0, ""
        return seen, wait, "never" if amount > self.capacity else "rate"

    def lacking(self, now_ms: int) -> int:
        """Ticks missing by then; what flowed in is not written down."""
        elapsed = now_ms - self.at_ms
        if elapsed < 0:
            self.at_ms = now_ms
            return self.missing
        return max(0, self.missing - elapsed * self.per_minute)

    def add(self, units: int, now_ms: int) -> None:
        """Give back ``units`` (take, when negative), at the figures the bucket has."""
        self.missing = max(0, self.lacking(now_ms) - units * TICKS)
        self.at_ms = now_ms


class Slots:
    """Concurrency: all holds are this process's own, and need no lease."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.held = 0

    def look(self, charge: Charge) -> Look:
        amount, capacity = charge.amount, self.limit.capacity
        level = Level(capacity - self.held, 0)
        if amount == 0 or self.held + amount <= capacity:
            return level, 0, ""
        return (level, NEVER, "never") if amount > capacity else (level, GUESS_MS, "concurrency")


class Quota(Tally):
    __slots__ = ("limit",)

    def __init__(self, limit: Limit) -> None:
        super().__init__()
        self.limit = limit


class Balance(Purse):
    __slots__ = ("limit",)

    def __init__(self, limit: Limit) -> None:
        super().__init__()
        self.limit = limit


Cell = Rate | Slots | Quota | Balance
_KINDS: dict[Algorithm, type[Rate] | type[Slots] | type[Quota] | type[Balance]] = {
    "bucket": Rate,
    "concurrency": Slots,
    "quota": Quota,
    "balance": Balance,
}


def cell_of(limit: Limit) -> Cell:
    """An untouched level."""
    return _KINDS[limit.algorithm](limit)


def adopt(cell: Cell, limit: Limit, now_ms: int) -> None:
    if isinstance(cell, Rate):
        cell.adopt(limit, now_ms)
    else:
        cell.limit = limit


def look(cell: Cell, charge: Charge, now_ms: int) -> Look:
    """What a charge would get of its level."""
    if isinstance(cell, Rate):
        return cell.look(charge, now_ms)
    if isinstance(cell, Slots):
        return cell.look(charge)
    if isinstance(cell, Quota):
        return cell.look(charge.limit, charge.amount, charge.periods, now_ms)
    return cell.look(charge.limit, charge.amount)


def take(cell: Cell, charge: Charge, now_ms: int) -> str:
    """Take a charge whatever the level says; what to keep of it in a reservation's ``taken``."""
    amount = charge.amount
    if isinstance(cell, Rate):
        if amount:
            cell.add(-amount, now_ms)
        return ALL
    if isinstance(cell, Quota):
        period_id, _ = period_now(charge.periods, now_ms)
        if period_id and amount:
            cell.begin(period_id).held += amount
        return period_id
    cell.held += amount
    return ALL


def gauge(cell: Cell, charge: Charge, level: Level, now_ms: int) -> Gauge:
    """A level as ``inspect`` shows it."""
    if isinstance(cell, Balance):
        return Gauge(0, cell.held, cell.level if cell.seeded else None)
    if isinstance(cell, Quota):
        period_id, _ = period_now(charge.periods, now_ms)
        slot = cell.find(period_id) if period_id else None
        return Gauge(slot.used, slot.held) if slot else Gauge(0)
    if isinstance(cell, Slots):
        holders = (Holder(OWNER, cell.held, LEASE_MS),) if cell.held else ()
        return Gauge(cell.held, holders=holders)
    return Gauge(charge.limit.capacity - level.remaining)
