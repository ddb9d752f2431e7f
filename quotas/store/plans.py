"""What one tenant's keys would be in Redis: levels, reservations, and the plans that lead to both.

A plan is what a list of limits comes to: its cells, in order, checked once; requests of a key bring
the same limits again and again. Not here: a level (``quotas.store.cells``), how reservations move
(``quotas.store.memory``).
"""

from collections.abc import Sequence

import msgspec

from quotas.limits import Charge, Limit, Verdict
from quotas.reservation import Identity, State, check_limits, identity
from quotas.store.cells import Cell, Rate, Slots, cell_of

#: Plans a tag remembers: a key, or a key and a model, has one.
PLANS_KEPT = 4_096
#: How many limits, and what knows the first and the last again while they live.
Key = tuple[int, int, int]


class Plan:
    """``plain``: buckets and concurrency that are enforced, which most lists are; then ``rates`` and
    ``slots`` are its cells, each with its place in the list.
    """

    __slots__ = ("cells", "limits", "plain", "rates", "slots")

    def __init__(self, limits: list[Limit], cells: list[Cell]) -> None:
        self.limits = limits  # also keeps the ids in a plan's key theirs
        self.cells = cells
        self.plain = all(
            limit.algorithm in ("bucket", "concurrency") and not limit.shadow for limit in limits
        )
        self.rates = [(n, cell) for n, cell in enumerate(cells) if isinstance(cell, Rate)]
        self.slots = [(n, cell) for n, cell in enumerate(cells) if isinstance(cell, Slots)]


class Reservation(msgspec.Struct, gc=False):
    """Mutable: ``state`` moves along ``quotas.reservation.TABLE``.

    ``charges``: as they were reserved. ``taken``: each charge's part: "" = nothing (a shadow limit
    would have refused), a quota's period, else "all"; None where it is "all" throughout. One without a
    verdict was never admitted here. ``early``: what it took of money not seeded by then.
    """

    state: State
    verdict: Verdict | None = None
    plan: Plan | None = None
    charges: Sequence[Charge] = ()
    taken: Sequence[str] | None = None
    deadline_ms: int = 0
    early: list[tuple[Cell, str, int]] | None = None

    def amounts(self) -> list[int]:
        """What was reserved, in order."""
        return [charge.amount for charge in self.charges]


#: Of one that was settled or released, the verdict; all of it where there is more to know.
Ended = Verdict | Reservation


class Tag:
    """``open`` and ``ended``: reservations by id."""

    __slots__ = ("_cells", "_plans", "ended", "open")

    def __init__(self) -> None:
        self._cells: dict[Identity, Cell] = {}
        self._plans: dict[Key, Plan] = {}
        self.open: dict[str, Reservation] = {}
        self.ended: dict[str, Ended] = {}

    def known_plan(self, charges: Sequence[Charge]) -> Plan | None:
        """A plain plan that was last made for such a list: most likely its own, which whoever uses it
        must prove limit by limit. Lists differ in their last limit, if anywhere: a key's, or a key's
        for a model.
        """
        if not charges:
            return None
        plan = self._plans.get((len(charges), id(charges[0].limit), id(charges[-1].limit)))
        return plan if plan is not None and plan.plain else None

    def plan(self, charges: Sequence[Charge]) -> Plan:
        """Raises ``ReservationRefused`` where a level is named twice."""
        limits = [charge.limit for charge in charges]
        key = (len(limits), id(limits[0]), id(limits[-1])) if limits else (0, 0, 0)
        plan = self._plans.get(key)
        if plan is not None and plan.limits == limits:
            return plan
        return self._make(key, limits)

    def cell(self, limit: Limit) -> Cell:
        name = identity(limit)
        cell = self._cells.get(name)
        if cell is None:
            cell = self._cells[name] = cell_of(limit)
        return cell

    def _make(self, key: Key, limits: list[Limit]) -> Plan:
        check_limits(limits)
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        plan = self._plans[key] = Plan(limits, [self.cell(limit) for limit in limits])
        return plan
