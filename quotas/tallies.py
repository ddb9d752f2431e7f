"""Quotas of calendar periods and balances of money, in exact integers: the reference of both stores.

A tally keeps two periods, the newest begun and the one before, so that requests in flight over the
turn (and a clock that steps back over it) find theirs. Used and held are told apart: used is
settled, held belongs to reservations that are not; so a refusal can say whether waiting for others
helps. A purse is money: a settled level whose truth is SQL, less what is held, plus the credit line.
Money counts for nothing until it was seeded in this epoch; what is settled before is counted from
zero and added to the seed. The same arithmetic stands in ``store/lua``. Pure.

Used and held apart is the two-phase transfer of TigerBeetle: pending and posted.
"""

from quotas.buckets import NEVER
from quotas.calendar import FOREVER_MS, Periods, covering
from quotas.limits import Level, Limit, Reason

#: Nobody knows when another request ends, or an operator acts.
GUESS_MS = 1_000
#: Level, wait in ms (0 = admitted, ``NEVER``), and why it has to wait.
Look = tuple[Level, int, Reason]


class Slot:
    """One period of a tally. Mutable."""

    __slots__ = ("held", "period_id", "used")

    def __init__(self, period_id: str) -> None:
        self.period_id = period_id
        self.used = 0
        self.held = 0


class Tally:
    """A quota's level. Mutable; ``seeded`` matters to money alone."""

    __slots__ = ("before", "newest", "seeded")

    def __init__(self) -> None:
        self.newest = Slot("")
        self.before = Slot("")
        self.seeded = False

    def find(self, period_id: str) -> Slot | None:
        if self.newest.period_id == period_id:
            return self.newest
        return self.before if self.before.period_id == period_id else None

    def begin(self, period_id: str) -> Slot:
        """The period's slot, begun where there is none: the older of the two makes room."""
        slot = self.find(period_id)
        if slot is None:
            self.before = self.newest
            slot = self.newest = Slot(period_id)
        return slot

    def look(self, limit: Limit, amount: int, periods: Periods | None, now_ms: int) -> Look:
        """What ``amount`` units would get, were they asked now. ``limit`` is a quota."""
        money = limit.dimension == "money"
        period_id, ends_ms = period_now(periods, now_ms)
        slot = self.find(period_id) if period_id else None
        used, held = (slot.used, slot.held) if slot else (0, 0)
        blind = not period_id or (money and not self.seeded)
        left = 0 if blind else limit.capacity - used - held
        level = Level(left, ends_ms - now_ms if 0 < ends_ms < FOREVER_MS else 0)
        if amount == 0:
            return level, 0, ""
        if not period_id:
            return level, GUESS_MS, "skewed"
        if amount > limit.capacity:
            return level, NEVER, "never"
        if blind:
            return level, GUESS_MS, "unbuilt"
        if used + amount > limit.capacity:
            wait = NEVER if ends_ms >= FOREVER_MS else ends_ms - now_ms
            return level, wait, "balance_spent" if money else "quota"
        if amount > left:
            return level, GUESS_MS, "balance_held" if money else "quota_held"
        return level, 0, ""


class Purse:
    """A balance, in micro-units. Mutable."""

    __slots__ = ("held", "level", "seeded")

    def __init__(self) -> None:
        self.level = 0
        self.held = 0
        self.seeded = False

    def look(self, limit: Limit, amount: int) -> Look:
        """What a hold of ``amount`` micro-units would get; ``limit.capacity`` is the credit line."""
        left = self.level + limit.capacity - self.held if self.seeded else 0
        level = Level(left, 0)
        if amount == 0:
            return level, 0, ""
        if not self.seeded:
            return level, GUESS_MS, "unbuilt"
        if self.level + limit.capacity < amount:
            return level, NEVER, "balance_spent"
        if left < amount:
            return level, GUESS_MS, "balance_held"
        return level, 0, ""


def period_now(periods: Periods | None, now_ms: int) -> tuple[str, int]:
    """The id and end of the period that covers the store's time; ("", 0) when neither does."""
    where = covering(periods, now_ms) if periods else -1
    if periods is None or where < 0:
        return "", 0
    if where == 0:
        return periods.this_id, periods.ends_ms
    return periods.next_id, periods.next_ends_ms
