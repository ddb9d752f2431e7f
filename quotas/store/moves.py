"""What an ended, lapsed or counted reservation does to levels in this process, row by row.

The same as ``lua/moves.lua`` and ``lua/seed.lua``. Not here: which reservation, and when
(``quotas.store.memory``).
"""

from collections.abc import Sequence

from quotas.ports import Seed
from quotas.reservation import State
from quotas.store.cells import ALL, Balance, Cell, Quota, Rate, Slots
from quotas.store.plans import Reservation
from quotas.tallies import Slot


def move(known: Reservation, actual: Sequence[int], now_ms: int) -> None:
    """What was reserved is no longer held, the true amounts are used."""
    plan = known.plan
    assert plan is not None
    taken = known.taken or [ALL] * len(plan.cells)
    rows = zip(plan.cells, known.amounts(), actual, taken, strict=True)
    for cell, reserved, used, part in rows:
        if not part:
            continue
        if isinstance(cell, Rate):
            if reserved != used:
                cell.add(reserved - used, now_ms)
        elif isinstance(cell, Slots):
            if known.state is State.HELD:
                cell.held = max(0, cell.held - reserved)
        elif isinstance(cell, Quota):
            slot = cell.find(part) or (None if reserved else cell.begin(part))
            if slot is None:
                continue  # the period is long over
            slot.used += used
            slot.held = max(0, slot.held - reserved)
            if cell.limit.dimension == "money" and not cell.seeded:
                known.early = [*(known.early or ()), (cell, part, used)]
        else:
            cell.level -= used
            cell.held = max(0, cell.held - reserved)
            if not cell.seeded:
                known.early = [*(known.early or ()), (cell, "", used)]


def free(known: Reservation) -> None:
    """Holds alone: what an expired reservation gives back."""
    plan = known.plan
    assert plan is not None
    for cell, reserved in zip(plan.cells, known.amounts(), strict=True):
        if isinstance(cell, Slots):
            cell.held = max(0, cell.held - reserved)


def lapse(known: Reservation, now_ms: int) -> None:
    """Nobody ended it in its time: no refund of what was not proven unused; money is SQL's to say."""
    plan = known.plan
    assert plan is not None
    limits = plan.limits
    used = [
        0 if limit.dimension == "money" and limit.algorithm != "bucket" else amount
        for limit, amount in zip(limits, known.amounts(), strict=True)
    ]
    move(known, used, now_ms)


def seed(cell: Cell, seed: Seed) -> Cell | None:
    """The cell, where it holds money that was not seeded before."""
    if isinstance(cell, Balance) and not cell.seeded:
        cell.level += seed.level
        cell.seeded = True
        return cell
    if isinstance(cell, Quota) and not cell.seeded:
        money = seed.limit.dimension == "money"
        slot = cell.begin(seed.period_id)
        slot.used = slot.used + seed.level if money else seed.level
        cell.seeded = True
        return cell if money else None
    return None


def forget_money(known: Reservation, fresh: Sequence[Cell]) -> None:
    """SQL has counted what an open reservation will settle: its money is no longer held."""
    plan = known.plan
    assert plan is not None
    taken, reserved = list(known.taken or [ALL] * len(plan.cells)), known.amounts()
    for index, cell in enumerate(plan.cells):
        if not taken[index] or not any(cell is each for each in fresh):
            continue
        holder = cell.find(taken[index]) if isinstance(cell, Quota) else cell
        if isinstance(holder, Balance | Slot):
            holder.held = max(0, holder.held - reserved[index])
        taken[index] = ""
    known.taken = taken


def give_back(known: Reservation, fresh: Sequence[Cell]) -> None:
    """SQL has counted what an ended reservation took before the seed."""
    for cell, period_id, amount in known.early or ():
        if not any(cell is each for each in fresh):
            continue
        if isinstance(cell, Balance):
            cell.level += amount
        elif isinstance(cell, Quota):
            cell.begin(period_id).used -= amount
    known.early = None
