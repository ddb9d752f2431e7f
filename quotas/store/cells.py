"""The levels of one tag in this process, found once for each list of limits that is charged.

A cell is one level with the limit it was last charged under. A plan is what a list of limits comes
to: its cells, in order, checked once; requests of a key bring the same limits again and again. Not
here: what is done with them (``quotas.store.memory``), the arithmetic (``quotas.buckets``,
``quotas.tallies``).
"""

from collections.abc import Sequence
from operator import attrgetter

from quotas.buckets import NEVER, TICKS, UNTOUCHED_MS, Bucket, fits, shown, wait_ms
from quotas.limits import Charge, Level, Limit, Verdict
from quotas.reservation import Identity, State, check_limits, identity
from quotas.tallies import GUESS_MS, Look, Purse, Tally

#: Plans a tag remembers: a key, or a key and a model, has one.
PLANS_KEPT = 4_096


class Rate(Bucket):
    __slots__ = ("limit",)

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit.capacity, limit.per_minute)
        self.limit = limit

    def adopt(self, limit: Limit, now_ms: int) -> None:
        """Go on under a limit's figures as they are now; the same figures move nothing."""
        if limit.capacity != self.capacity or limit.per_minute != self.per_minute:
            self.configure(limit.capacity, limit.per_minute, now_ms)
        self.limit = limit

    def touch(self, limit: Limit) -> None:
        """An untouched bucket is full under the limit's figures as they are now."""
        if self.at_ms == UNTOUCHED_MS:
            self.adopt(limit, 0)

    def under(self, limit: Limit, now_ms: int) -> "Rate":
        """A copy, as it would go on under the limit."""
        copy = Rate(self.limit)
        copy.level, copy.at_ms = self.level, self.at_ms
        copy.adopt(limit, now_ms)
        return copy

    def look(self, charge: Charge, now_ms: int) -> Look:
        """What the charge would get; changes nothing but a clock that stepped back."""
        amount = charge.amount
        level = self.at(now_ms)
        wait = wait_ms(level, amount, self.capacity, self.per_minute)
        seen = shown(level, self.capacity, self.per_minute)
        if fits(level, amount):
            return seen, 0, ""
        return seen, wait, "never" if amount > self.capacity else "rate"

    def at(self, now_ms: int) -> int:
        """The level in ticks by then; what flowed in is not written down."""
        elapsed = now_ms - self.at_ms
        if elapsed < 0:
            self.at_ms = now_ms
            return self.level
        return min(self.level + elapsed * self.per_minute, self.full)

    def take(self, amount: int, now_ms: int) -> None:
        self.level = self.advance(now_ms) - amount * TICKS


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
_CELLS: dict[str, type[Rate] | type[Slots] | type[Quota] | type[Balance]] = {
    "bucket": Rate,
    "concurrency": Slots,
    "quota": Quota,
    "balance": Balance,
}


#: A place in the list, its cell by kind, its limit.
Step = tuple[int, Rate | None, Slots | None, Limit]
_NONE = Level(0, 0)
_limit_of = attrgetter("limit")


def key_of(charges: Sequence[Charge]) -> tuple[int, ...]:
    """What knows a list of limits again while they live. Walked by C: it runs twice a request."""
    return tuple(map(id, map(_limit_of, charges)))


class Plan:
    """``plain``: buckets and concurrency that are enforced, which most lists are; they are walked
    by ``steps``, which ask no cell what it is. ``blank``: levels to be filled in.
    """

    __slots__ = ("blank", "cells", "key", "limits", "plain", "steps")

    def __init__(self, key: tuple[int, ...], limits: tuple[Limit, ...], cells: list[Cell]) -> None:
        self.key = key
        self.limits = limits  # also keeps the ids in ``key`` theirs
        self.cells = cells
        self.plain = all(
            limit.algorithm in ("bucket", "concurrency") and not limit.shadow for limit in limits
        )
        self.steps: tuple[Step, ...] = tuple(
            (
                index,
                cell if isinstance(cell, Rate) else None,
                cell if isinstance(cell, Slots) else None,
                limit,
            )
            for index, (cell, limit) in enumerate(zip(cells, limits, strict=True))
        )
        self.blank = (_NONE,) * len(limits)


class Reservation:
    """Mutable: ``state`` moves along ``quotas.reservation.TABLE``.

    ``taken``: each charge's part: "" = nothing (a shadow limit would have refused), a quota's
    period, else "all"; None where it is "all" throughout. An ended one keeps state and verdict; one
    without a verdict was never admitted here. ``early``: what it took of money not seeded by then.
    """

    __slots__ = ("amounts", "deadline_ms", "early", "plan", "state", "taken", "verdict")

    def __init__(
        self,
        state: State,
        verdict: Verdict | None = None,
        plan: Plan | None = None,
        amounts: Sequence[int] = (),
        taken: Sequence[str] | None = None,
        deadline_ms: int = 0,
    ) -> None:
        self.state = state
        self.verdict = verdict
        self.plan = plan
        self.amounts = amounts
        self.taken = taken
        self.deadline_ms = deadline_ms
        self.early: list[tuple[Cell, str, int]] = []


class Tag:
    """What one tenant's keys would be in Redis."""

    __slots__ = ("_cells", "_plans", "ended", "open")

    def __init__(self) -> None:
        self._cells: dict[Identity, Cell] = {}
        self.open: dict[str, Reservation] = {}
        self.ended: dict[str, Reservation] = {}
        self._plans: dict[tuple[int, ...], Plan] = {}

    def plan(self, charges: Sequence[Charge]) -> Plan:
        """Raises ``ReservationRefused`` where a level is named twice."""
        key = key_of(charges)
        return self._plans.get(key) or self._make(key, charges)

    def cell(self, limit: Limit) -> Cell:
        name = identity(limit)
        cell = self._cells.get(name)
        if cell is None:
            cell = self._cells[name] = _CELLS[limit.algorithm](limit)
        return cell

    def _make(self, key: tuple[int, ...], charges: Sequence[Charge]) -> Plan:
        limits = tuple([charge.limit for charge in charges])
        check_limits(limits)
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        plan = self._plans[key] = Plan(key, limits, [self.cell(limit) for limit in limits])
        return plan
