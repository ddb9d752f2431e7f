"""Reservations in this process: for one data process, for tests, for a laptop.

The same rules as the Lua scripts, on the pure parts (``quotas.buckets``, ``quotas.tallies``,
``quotas.reservation``); nothing is awaited and ``done`` runs before the call returns. What it knows
dies with the process: the next one is another epoch. Levels are kept for every limit ever charged,
some 300 bytes each. Not here: levels (``quotas.store.cells``), the hot path
(``quotas.store.plain``), what an ending does to levels (``quotas.store.moves``).
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter

from quotas.buckets import NEVER
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Inspection, Limit, Reason, Verdict
from quotas.ports import Seed, Settlement
from quotas.reservation import (
    State,
    Step,
    after,
    by_scope,
    check_amounts,
    check_periods,
    true_amounts,
)
from quotas.store import moves
from quotas.store.cells import Balance, Cell, Quota, Rate, adopt, gauge, look, take
from quotas.store.plain import settle_plain, take_plain
from quotas.store.plans import Ended, Plan, Reservation, Tag
from quotas.tallies import Look, period_now

_limit_of = attrgetter("limit")
#: Ended reservations remembered, to answer a repeated reserve: the newest of all tags. An id comes
#: again in this process within its own request or never; each takes some 1.3 kB.
ENDED_KEPT = 4_096
#: Held reservations are looked through for forgotten ones so often.
SWEEP_EVERY_MS = 60_000
#: An enum's member is looked up by Python code.
_HELD, _SETTLED = State.HELD, State.SETTLED


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
        self._ended: deque[tuple[dict[str, Ended], str]] = deque()
        self._claims: dict[tuple[str, str], tuple[str, int]] = {}  # name -> (request id, until)
        self._sweep_ms = 0

    # -- admission ---------------------------------------------------------------------------

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        kept = self._tags.get(tag) or self._tag(tag)
        if reservation_id in kept.open or reservation_id in kept.ended:
            return _first_verdict(kept, reservation_id)
        plan = kept.known_plan(charges)
        now_ms = self._now_ms()
        if plan is not None and (levels := take_plain(plan, charges, now_ms)) is not None:
            verdict, taken = Verdict(True, levels, self._epoch), None  # noqa: FBT003  hot path
        else:
            check_amounts([charge.amount for charge in charges])
            check_periods(charges)
            plan = kept.plan(charges)
            verdict, taken = self._take(plan, charges, now_ms)
            if not verdict.admitted:
                return verdict
        kept.open[reservation_id] = Reservation(
            _HELD, verdict, plan, charges, taken, now_ms + ttl_s * 1000
        )
        if now_ms >= self._sweep_ms:
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
                gauge(cell, charge, level, now_ms)
                for cell, charge, level in zip(cells, charges, verdict.levels, strict=True)
            ]
        )
        return Inspection(verdict, gauges, now_ms)

    # -- endings -----------------------------------------------------------------------------

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        kept = self._tags.get(settlement.tag) or self._tag(settlement.tag)
        reservation_id, charged = settlement.reservation_id, settlement.charged
        known = kept.open.pop(reservation_id, None)
        if known is None:
            self._settle_unknown(kept, settlement)
        else:
            plan, now_ms = known.plan, self._now_ms()
            assert plan is not None
            same = list(map(_limit_of, charged)) == plan.limits
            ended: Ended | None = None
            if same and plan.plain and known.state is _HELD:
                settle_plain(plan, known.charges, charged, now_ms)
                ended = known.verdict
            else:
                actual = [charge.amount for charge in charged]
                if not same:
                    actual = true_amounts(plan.limits, known.amounts(), charged)
                moves.move(known, actual, now_ms)
            self._end(kept, reservation_id, ended or _ended(known, _SETTLED))
        if done is not None:
            done()

    def _settle_unknown(self, kept: Tag, settlement: Settlement) -> None:
        """Of another life or counted by SQL: charged, once; else it has ended."""
        ended = kept.ended.get(settlement.reservation_id)
        counted = isinstance(ended, Reservation) and ended.state is State.COUNTED
        if counted or (ended is None and settlement.epoch != self._epoch):
            self._charge_in_full(kept, settlement, counted=counted)
            # Not in the ring of ended ids: it must outlive every retry, and is rare (recovery).
            kept.ended[settlement.reservation_id] = Reservation(_SETTLED)

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        kept = self._tag(tag)
        known = kept.open.pop(reservation_id, None)
        if known is not None:
            moves.move(known, [0] * len(known.charges), self._now_ms())
            self._end(kept, reservation_id, _ended(known, State.RELEASED))
        elif reservation_id not in kept.ended:
            self._end(kept, reservation_id, Reservation(State.TOMBSTONE))
        if done is not None:
            done()

    def expire(self, tag: str, reservation_id: str) -> None:
        known = self._tag(tag).open.get(reservation_id)
        if known is not None and after(known.state, Step.EXPIRE) is State.EXPIRED:
            moves.free(known)
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
        fresh = [
            cell for each in seeds if (cell := moves.seed(kept.cell(each.limit), each)) is not None
        ]
        for reservation_id in counted if fresh else ():
            known = kept.open.get(reservation_id) or kept.ended.get(reservation_id)
            if known is None:
                kept.ended[reservation_id] = Reservation(State.COUNTED)
            elif isinstance(known, Verdict):
                continue  # it took no money that was not seeded
            elif known.state in (State.HELD, State.EXPIRED):
                moves.forget_money(known, fresh)
            else:
                moves.give_back(known, fresh)
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
        check_amounts([charge.amount for charge in charges])
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
            take(cell, charge, now_ms) for cell, charge in zip(plan.cells, charges, strict=True)
        ]
        levels = [
            level if charge.amount == 0 else look(cell, charge, now_ms)[0]
            for cell, charge, level in zip(plan.cells, charges, seen.levels, strict=True)
        ]
        kept.open[reservation_id] = Reservation(
            State.HELD,
            Verdict(True, tuple(levels), self._epoch),  # noqa: FBT003
            plan,
            charges,
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

    async def heartbeat(self, *, leaving: bool = False) -> int:
        """Nobody shares a process's memory."""
        return 0 if leaving else 1

    def settle_lag_s(self) -> float:
        """Always 0: nothing is queued."""
        return 0.0

    async def flush(self, timeout_s: float, part: str | None = None) -> bool:  # noqa: ARG002
        """Nothing is ever queued."""
        return True

    async def ping(self, part: str | None = None) -> float:  # noqa: ARG002  there is but one
        return 0.0

    def part(self, tag: str) -> str:  # noqa: ARG002  there is but one
        return ""

    def reached(self, tag: str) -> bool:  # noqa: ARG002  it is this process
        return True

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
            adopt(cell, charge.limit, now_ms)
            looks.append(look(cell, charge, now_ms))
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
            taken.append(take(cell, charge, now_ms))
            level = seen.levels[index]
            levels.append(look(cell, charge, now_ms)[0] if charge.amount else level)
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

    def _end(self, kept: Tag, reservation_id: str, ended: Ended) -> None:
        """Remember an ended reservation among the newest; forget the oldest beyond the ring."""
        of_tag, ring = kept.ended, self._ended
        of_tag[reservation_id] = ended
        ring.append((of_tag, reservation_id))
        if len(ring) > ENDED_KEPT:
            old, old_id = ring.popleft()
            old.pop(old_id, None)

    def _sweep(self, now_ms: int) -> None:
        """Drop held reservations past their time: their holds go free, what quotas held is used."""
        self._sweep_ms = now_ms + SWEEP_EVERY_MS
        for kept in self._tags.values():
            late = [name for name, each in kept.open.items() if each.deadline_ms <= now_ms]
            for name in late:
                moves.lapse(kept.open.pop(name), now_ms)


def _first_verdict(kept: Tag, reservation_id: str) -> Verdict:
    """What a repeated reserve is answered; raises ``ReservationRefused`` where it was never admitted."""
    known = kept.open.get(reservation_id) or kept.ended[reservation_id]
    verdict = known if isinstance(known, Verdict) else known.verdict
    if verdict is None:
        raise ReservationRefused("the id was ended before it was reserved")
    return verdict


def _ended(known: Reservation, state: State) -> Ended:
    """What is left of a reservation: mostly its verdict alone."""
    if known.early is None and known.verdict is not None:
        return known.verdict
    return Reservation(state, known.verdict, early=known.early)
