"""The hot path of the in-process store: lists of plain limits, taken and settled in one loop each.

Plain are buckets and concurrency that are enforced. The same arithmetic as the cells' own methods,
written out: a call a row would cost twice the time. Everything else, refusals and changed limits
included, goes the general way (``quotas.store.memory``), which says what happens.
"""

from collections.abc import Sequence

from quotas.buckets import TICKS, UNTOUCHED_MS
from quotas.limits import Charge, Level
from quotas.store.cells import Rate, Slots
from quotas.store.plans import Plan

_NONE = Level(0, 0)
_ALMOST_ONE = TICKS - 1


def take_plain(plan: Plan, charges: Sequence[Charge], now_ms: int) -> tuple[Level, ...] | None:
    """Take everything and show what is left; None, with nothing taken, where something refuses.

    None as well where a limit is not the one its cell has now, which proves the plan right else.
    """
    level, ticks, almost_one = Level, TICKS, _ALMOST_ONE  # a local is found sooner
    levels = [_NONE] * len(charges)
    untouched: list[Rate] | None = None
    refusing: Rate | Slots
    for index, rate in plan.rates:
        charge = charges[index]
        if charge.limit is not rate.limit:
            refusing = rate
            break
        missing, per_minute = rate.missing, rate.per_minute
        if missing:
            elapsed = now_ms - rate.at_ms
            if elapsed > 0:
                missing -= elapsed * per_minute
                if missing < 0:  # noqa: PLR1730  a call costs more
                    missing = 0
            elif elapsed:
                rate.at_ms = now_ms
        elif rate.at_ms < 0:
            untouched = [*(untouched or ()), rate]
        amount = charge.amount
        if amount > 0:
            missing += amount * ticks
            if missing > rate.full:
                refusing = rate
                break
            rate.missing = missing
            rate.at_ms = now_ms
        elif amount:
            refusing = rate
            break
        if missing:
            levels[index] = level(
                rate.capacity - (missing + almost_one) // ticks,
                (missing + per_minute - 1) // per_minute if per_minute else 0,
            )
        else:
            levels[index] = level(rate.capacity, 0)
    else:
        for index, slots in plan.slots:
            charge, limit = charges[index], slots.limit
            amount = charge.amount
            held = slots.held + amount
            left = limit.capacity - held
            if charge.limit is not limit or (left < 0 and amount) or amount < 0:
                refusing = slots
                break
            slots.held = held
            levels[index] = level(left, 0)
        else:
            return tuple(levels)
    _give_back(plan, charges, refusing)
    for rate in untouched or ():
        rate.missing, rate.at_ms = 0, UNTOUCHED_MS
    return None


def _give_back(plan: Plan, charges: Sequence[Charge], refusing: Rate | Slots) -> None:
    """What was taken of the rows before the one that refuses."""
    for index, rate in plan.rates:
        if rate is refusing:
            return
        rate.missing -= charges[index].amount * TICKS
    for index, slots in plan.slots:
        if slots is refusing:
            return
        slots.held -= charges[index].amount


def settle_plain(
    plan: Plan, reserved: Sequence[Charge], charged: Sequence[Charge], now_ms: int
) -> None:
    """True amounts in place of the reserved ones, of a list that was taken whole and still holds."""
    for index, rate in plan.rates:
        more = charged[index].amount - reserved[index].amount
        if more < 0:
            elapsed = now_ms - rate.at_ms
            missing = rate.missing + more * TICKS
            if elapsed > 0:
                missing -= elapsed * rate.per_minute
            rate.missing = missing if missing > 0 else 0  # noqa: FURB136  a call costs more
            rate.at_ms = now_ms
        elif more:
            rate.add(-more, now_ms)
    for index, slots in plan.slots:
        held = slots.held - reserved[index].amount
        slots.held = held if held > 0 else 0  # noqa: FURB136
