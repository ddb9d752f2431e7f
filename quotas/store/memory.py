"""Reservations in this process: for one data process, for tests, for a laptop.

The same rules as the Lua scripts, on the pure parts (``quotas.buckets``, ``quotas.tallies``,
``quotas.reservation``); nothing is awaited and ``done`` runs before the call returns. What it knows
dies with the process: the next one is another epoch. Levels are kept for every limit ever charged,
some 300 bytes each.

Longer than its neighbours where it is the hot path: lists of plain limits are taken, and settled, in
one loop each; everything else, refusals included, goes the general way, which says what happens.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence

from quotas.buckets import NEVER, TICKS, UNTOUCHED_MS
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Gauge, Holder, Inspection, Level, Limit, Reason, Verdict
from quotas.ports import Seed, Settlement
from quotas.reservation import (
    LEASE_MS,
    State,
    Step,
    after,
    by_scope,
    check_amounts,
    check_periods,
    true_amounts,
)
from quotas.store.cells import (
    Balance,
    Cell,
    Plan,
    Quota,
    Rate,
    Reservation,
    Slots,
    Tag,
    key_of,
)
from quotas.tallies import Look, Slot, period_now

#: Ended reservations remembered, to answer a repeated reserve: the newest of all tags.
ENDED_KEPT = 65_536
#: Held reservations are looked through for forgotten ones once every so many reserves.
SWEEP_EVERY = 4_096
ALL = "all"
OWNER = "this process"


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class MemoryStore:
    """A ``quotas.ports.QuotaStore``. One event loop; ``now_ms`` is the store's clock.

    Calendar quotas need Unix time: hand in such a clock where there are any.
    """

    def __init__(self, now_ms: Callable[[], int] = monotonic_ms) -> None:
        self.name = "memory"
        self._epoch = secrets.token_hex(8)
        self._now_ms = now_ms
        self._tags: dict[str, Tag] = {}
        self._ended: deque[tuple[Tag, str]] = deque()
        self._claims: dict[tuple[str, str], tuple[str, int]] = {}  # name -> (request id, until)
        self._until_sweep = SWEEP_EVERY

    # -- admission ---------------------------------------------------------------------------

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        kept = self._tags.get(tag) or self._tag(tag)
        known = kept.open.get(reservation_id) or kept.ended.get(reservation_id)
        if known is not None:
            if known.verdict is None:
                raise ReservationRefused("the id was ended before it was reserved")
            return known.verdict
        amounts = [charge.amount for charge in charges]
        check_amounts(amounts)
        plan = kept.plan(charges)
        now_ms = self._now_ms()
        levels = _take_plain(plan, amounts, now_ms) if plan.plain else None
        if levels is not None:
            verdict, taken = Verdict(True, levels, self._epoch), None  # noqa: FBT003  hot path
        else:
            check_periods(charges)
            verdict, taken = self._take(plan, charges, now_ms)
        if verdict.admitted:
            kept.open[reservation_id] = Reservation(
                State.HELD, verdict, plan, amounts, taken, now_ms + ttl_s * 1000
            )
            self._until_sweep -= 1
            if self._until_sweep <= 0:
                self._sweep(now_ms)
        return verdict

    async def inspect(self, tag: str, charges: Sequence[Charge]) -> Inspection:
        check_amounts([charge.amount for charge in charges])
        check_periods(charges)
        kept = self._tags.get(tag) or Tag()
        plan = kept.plan(charges)
        now_ms = self._now_ms()
        cells = [
            cell.under(charge.limit, now_ms) if isinstance(cell, Rate) else cell
            for cell, charge in zip(plan.cells, charges, strict=True)
        ]
        verdict, _ = self._judge(cells, charges, now_ms)
        gauges = tuple(
            [
                _gauge(cell, charge, level, now_ms)
                for cell, charge, level in zip(cells, charges, verdict.levels, strict=True)
            ]
        )
        return Inspection(verdict, gauges, now_ms)

    # -- endings -----------------------------------------------------------------------------

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        kept = self._tag(settlement.tag)
        known = kept.open.get(settlement.reservation_id)
        if known is not None:
            plan = known.plan
            assert plan is not None
            charged = settlement.charged
            if key_of(charged) == plan.key:
                actual = [charge.amount for charge in charged]
            else:
                actual = true_amounts(plan.limits, known.amounts, charged)
            now_ms = self._now_ms()
            if plan.plain and known.state is State.HELD:
                _settle_plain(plan, known.amounts, actual, now_ms)
            else:
                _move(known, actual, now_ms)
            self._end(kept, settlement.reservation_id, known, State.SETTLED)
        else:
            ended = kept.ended.get(settlement.reservation_id)
            counted = ended is not None and ended.state is State.COUNTED
            if counted or (ended is None and settlement.epoch != self._epoch):
                self._charge_in_full(kept, settlement, counted=counted)
                # Not in the ring of ended ids: it must outlive every retry, and is rare (recovery).
                kept.ended[settlement.reservation_id] = Reservation(State.SETTLED)
        if done is not None:
            done()

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        kept = self._tag(tag)
        known = kept.open.get(reservation_id)
        if known is not None:
            _move(known, [0] * len(known.amounts), self._now_ms())
            self._end(kept, reservation_id, known, State.RELEASED)
        elif reservation_id not in kept.ended:
            self._end(kept, reservation_id, Reservation(State.TOMBSTONE), State.TOMBSTONE)
        if done is not None:
            done()

    def expire(self, tag: str, reservation_id: str) -> None:
        known = self._tag(tag).open.get(reservation_id)
        if known is not None and after(known.state, Step.EXPIRE) is State.EXPIRED:
            _free(known)
            known.state = State.EXPIRED

    # -- rebuilding --------------------------------------------------------------------------

    async def epoch(self, tag: str) -> str:  # noqa: ARG002  one life for all tags
        return self._epoch

    async def seed(
        self, tag: str, epoch: str, seeds: Sequence[Seed], counted: Sequence[str] = ()
    ) -> bool:
        if epoch != self._epoch:
            return False
        kept = self._tag(tag)
        fresh = [cell for each in seeds if (cell := _seed(kept.cell(each.limit), each)) is not None]
        for reservation_id in counted if fresh else ():
            known = kept.open.get(reservation_id) or kept.ended.get(reservation_id)
            if known is None:
                kept.ended[reservation_id] = Reservation(State.COUNTED)
            elif known.state in (State.HELD, State.EXPIRED):
                _forget_money(known, fresh)
            else:
                _give_back(known, fresh)
        return True

    async def adjust(
        self, tag: str, epoch: str, adjustment_id: str, limit: Limit, delta: int
    ) -> bool:
        kept = self._tag(tag)
        if epoch != self._epoch:
            return False
        if adjustment_id in kept.ended:
            return True
        purse = kept.cell(limit)
        assert isinstance(purse, Balance)
        if not purse.seeded:
            return False
        purse.level += delta
        kept.ended[adjustment_id] = Reservation(State.SETTLED)
        return True

    async def rehold(
        self, tag: str, reservation_id: str, epoch: str, charges: Sequence[Charge], ttl_s: int
    ) -> bool:
        amounts = [charge.amount for charge in charges]
        check_amounts(amounts)
        check_periods(charges)
        kept = self._tag(tag)
        if epoch != self._epoch or reservation_id in kept.ended:
            return False
        if reservation_id in kept.open:
            return True
        plan = kept.plan(charges)
        now_ms = self._now_ms()
        seen, _ = self._judge(plan.cells, charges, now_ms)
        taken = [
            _take_one(cell, charge, now_ms)
            for cell, charge in zip(plan.cells, charges, strict=True)
        ]
        levels = [
            level if charge.amount == 0 else _look(cell, charge, now_ms)[0]
            for cell, charge, level in zip(plan.cells, charges, seen.levels, strict=True)
        ]
        kept.open[reservation_id] = Reservation(
            State.HELD,
            Verdict(True, tuple(levels), self._epoch),  # noqa: FBT003
            plan,
            amounts,
            taken,
            now_ms + ttl_s * 1000,
        )
        return True

    # -- the rest of the port ----------------------------------------------------------------

    async def claim(self, tag: str, name: str, request_id: str, ttl_s: int) -> str:
        now_ms = self._now_ms()
        held = self._claims.get((tag, name))
        if held is not None and held[1] > now_ms:
            return held[0]
        self._claims.pop((tag, name), None)  # so that the oldest stay first
        while self._claims and next(iter(self._claims.values()))[1] <= now_ms:
            del self._claims[next(iter(self._claims))]
        self._claims[tag, name] = (request_id, now_ms + ttl_s * 1000)
        return request_id

    def unclaim(self, tag: str, name: str, request_id: str) -> None:
        if self._claims.get((tag, name), ("", 0))[0] == request_id:
            del self._claims[tag, name]

    def settle_lag_s(self) -> float:
        """Always 0: nothing is queued."""
        return 0.0

    async def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  nothing is ever queued
        return True

    async def ping(self) -> float:
        return 0.0

    async def close(self) -> None:
        """Nothing to let go of."""

    def _tag(self, tag: str) -> Tag:
        kept = self._tags.get(tag)
        if kept is None:
            kept = self._tags[tag] = Tag()
        return kept

    def _judge(
        self, cells: Sequence[Cell], charges: Sequence[Charge], now_ms: int
    ) -> tuple[Verdict, frozenset[int]]:
        """Look at every charge; the verdict before anything is taken, and who is not to be charged."""
        binding, longest = -1, 0
        why: Reason = ""
        skipped: list[int] = []
        looks: list[Look] = []
        for cell, charge in zip(cells, charges, strict=True):
            _adopt(cell, charge.limit, now_ms)
            looks.append(_look(cell, charge, now_ms))
        for index in by_scope([charge.limit for charge in charges]):
            _, wait, reason = looks[index]
            if wait == 0:
                continue
            if charges[index].limit.shadow:
                skipped.append(index)
            elif longest != NEVER and (wait == NEVER or wait > longest):
                binding, longest, why = index, wait, reason
        levels = [level for level, _, _ in looks]
        verdict = Verdict(
            binding < 0, tuple(levels), self._epoch, binding, longest, why, tuple(sorted(skipped))
        )
        return verdict, frozenset(skipped)

    def _take(
        self, plan: Plan, charges: Sequence[Charge], now_ms: int
    ) -> tuple[Verdict, list[str] | None]:
        seen, skipped = self._judge(plan.cells, charges, now_ms)
        if not seen.admitted:
            return seen, None
        taken, levels = [], []
        for index, (cell, charge) in enumerate(zip(plan.cells, charges, strict=True)):
            if index in skipped:
                taken.append("")
                levels.append(seen.levels[index])
                continue
            taken.append(_take_one(cell, charge, now_ms))
            level = seen.levels[index]
            levels.append(_look(cell, charge, now_ms)[0] if charge.amount else level)
        return (
            Verdict(True, tuple(levels), self._epoch, shadowed=seen.shadowed),  # noqa: FBT003
            taken,
        )

    def _charge_in_full(self, kept: Tag, settlement: Settlement, *, counted: bool) -> None:
        """What this life of the data never held is not given back; all that was used is taken.

        Money only where SQL's sum does not have it already: neither before it was seeded, nor when
        it was counted.
        """
        now_ms = self._now_ms()
        for charge in settlement.charged:
            limit, amount = charge.limit, charge.amount
            if amount == 0:
                continue
            cell = kept.cell(limit)
            money = limit.dimension == "money"
            if isinstance(cell, Rate):
                if not (money and counted):
                    cell.touch(limit)
                    cell.add(-amount, now_ms)
            elif isinstance(cell, Quota):
                period_id, _ = period_now(charge.periods, now_ms)
                if period_id and not (money and (counted or not cell.seeded)):
                    cell.begin(period_id).used += amount
            elif isinstance(cell, Balance) and cell.seeded and not counted:
                cell.level -= amount

    def _end(self, kept: Tag, reservation_id: str, ended: Reservation, state: State) -> None:
        """Remember an ended reservation among the newest; forget the oldest beyond the ring."""
        ended.state = state
        ended.plan, ended.amounts, ended.taken = None, (), None
        kept.open.pop(reservation_id, None)
        kept.ended[reservation_id] = ended
        self._ended.append((kept, reservation_id))
        if len(self._ended) > ENDED_KEPT:
            old, old_id = self._ended.popleft()
            old.ended.pop(old_id, None)

    def _sweep(self, now_ms: int) -> None:
        """Drop held reservations past their time: their holds go free, what quotas held is used."""
        self._until_sweep = SWEEP_EVERY
        for kept in self._tags.values():
            late = [name for name, each in kept.open.items() if each.deadline_ms <= now_ms]
            for name in late:
                _lapse(kept.open.pop(name), now_ms)


def _take_plain(plan: Plan, amounts: list[int], now_ms: int) -> tuple[Level, ...] | None:
    """Take everything and show what is left; None, with nothing taken, where something refuses."""
    levels = [*plan.blank]
    untouched: list[Rate] = []
    for index, rate, slots, limit in plan.steps:
        amount = amounts[index]
        if rate is not None:
            if rate.limit is not limit:
                rate.adopt(limit, now_ms)
            elapsed = now_ms - rate.at_ms
            level = rate.level
            full = rate.full
            if elapsed > 0:
                level += elapsed * rate.per_minute
                if level >= full:
                    level = full
                    if rate.at_ms < 0:
                        untouched.append(rate)
            elif elapsed:
                rate.at_ms = now_ms
            if amount:
                need = amount * TICKS
                if level < need:
                    break
                rate.level = level = level - need
                rate.at_ms = now_ms
            if level < full and rate.per_minute:
                levels[index] = Level(level // TICKS, -((level - full) // rate.per_minute))
            else:
                levels[index] = Level(level // TICKS, 0)
        elif slots is not None:
            slots.limit = limit
            held = slots.held + amount
            left = limit.capacity - held
            if amount:
                if left < 0:
                    break
                slots.held = held
            levels[index] = Level(left, 0)
    else:
        return tuple(levels)
    for taken, rate, slots, _ in plan.steps[:index]:
        if rate is not None:
            rate.level += amounts[taken] * TICKS
        elif slots is not None:
            slots.held -= amounts[taken]
    for cell in untouched:
        cell.level, cell.at_ms = cell.full, UNTOUCHED_MS
    return None


def _settle_plain(plan: Plan, reserved: Sequence[int], actual: Sequence[int], now_ms: int) -> None:
    """True amounts in place of the reserved ones, of a list that was taken whole and still holds."""
    for index, rate, slots, _ in plan.steps:
        held, used = reserved[index], actual[index]
        if rate is not None:
            if held != used:
                elapsed = now_ms - rate.at_ms
                level = rate.level
                full = rate.full
                if elapsed > 0:
                    level += elapsed * rate.per_minute
                    level = min(level, full)
                level += (held - used) * TICKS
                rate.level = min(level, full)
                rate.at_ms = now_ms
        elif held and slots is not None:
            slots.held = max(0, slots.held - held)


def _adopt(cell: Cell, limit: Limit, now_ms: int) -> None:
    if isinstance(cell, Rate):
        cell.adopt(limit, now_ms)
    else:
        cell.limit = limit


def _look(cell: Cell, charge: Charge, now_ms: int) -> Look:
    if isinstance(cell, Rate):
        return cell.look(charge, now_ms)
    if isinstance(cell, Slots):
        return cell.look(charge)
    if isinstance(cell, Quota):
        return cell.look(charge.limit, charge.amount, charge.periods, now_ms)
    return cell.look(charge.limit, charge.amount)


def _take_one(cell: Cell, charge: Charge, now_ms: int) -> str:
    """Take a charge whatever the level says; what to keep of it in ``Reservation.taken``."""
    amount = charge.amount
    if isinstance(cell, Rate):
        if amount:
            cell.take(amount, now_ms)
        return ALL
    if isinstance(cell, Quota):
        period_id, _ = period_now(charge.periods, now_ms)
        if period_id and amount:
            cell.begin(period_id).held += amount
        return period_id
    cell.held += amount
    return ALL


def _move(known: Reservation, actual: Sequence[int], now_ms: int) -> None:
    """What was reserved is no longer held, the true amounts are used."""
    plan = known.plan
    assert plan is not None
    taken = known.taken or [ALL] * len(plan.cells)
    for cell, reserved, used, part in zip(plan.cells, known.amounts, actual, taken, strict=True):
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
                known.early.append((cell, part, used))
        else:
            cell.level -= used
            cell.held = max(0, cell.held - reserved)
            if not cell.seeded:
                known.early.append((cell, "", used))


def _free(known: Reservation) -> None:
    plan = known.plan
    assert plan is not None
    for cell, reserved in zip(plan.cells, known.amounts, strict=True):
        if isinstance(cell, Slots):
            cell.held = max(0, cell.held - reserved)


def _lapse(known: Reservation, now_ms: int) -> None:
    """Nobody ended it in its time: no refund of what was not proven unused; money is SQL's to say."""
    plan = known.plan
    assert plan is not None
    limits = plan.limits
    used = [
        0 if limit.dimension == "money" and limit.algorithm != "bucket" else amount
        for limit, amount in zip(limits, known.amounts, strict=True)
    ]
    _move(known, used, now_ms)


def _seed(cell: Cell, seed: Seed) -> Cell | None:
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


def _forget_money(known: Reservation, fresh: Sequence[Cell]) -> None:
    """SQL has counted what an open reservation will settle: its money is no longer held."""
    plan = known.plan
    assert plan is not None
    taken = list(known.taken or [ALL] * len(plan.cells))
    for index, cell in enumerate(plan.cells):
        if not taken[index] or not any(cell is each for each in fresh):
            continue
        holder = cell.find(taken[index]) if isinstance(cell, Quota) else cell
        if isinstance(holder, Balance | Slot):
            holder.held = max(0, holder.held - known.amounts[index])
        taken[index] = ""
    known.taken = taken


def _give_back(known: Reservation, fresh: Sequence[Cell]) -> None:
    """SQL has counted what an ended reservation took before the seed."""
    for cell, period_id, amount in known.early:
        if not any(cell is each for each in fresh):
            continue
        if isinstance(cell, Balance):
            cell.level += amount
        elif isinstance(cell, Quota):
            cell.begin(period_id).used -= amount
    known.early = []


def _gauge(cell: Cell, charge: Charge, level: Level, now_ms: int) -> Gauge:
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
