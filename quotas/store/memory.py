"""Reservations in this process: for one data process, for tests, for a laptop.

The same rules as the Lua scripts, on the pure parts (``quotas.buckets``, ``quotas.reservation``);
nothing is awaited and ``done`` runs before the call returns. What it knows dies with the process:
the next one is another epoch. Levels are kept for every limit ever charged, some 200 bytes each.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence

from quotas.buckets import NEVER, TICKS, Bucket, shown, wait_ms
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Level, Verdict
from quotas.ports import Settlement
from quotas.reservation import (
    CONCURRENCY_RETRY_MS,
    Reservation,
    State,
    Step,
    check_charges,
    true_amounts,
)

#: Ended reservations remembered, to answer a repeated reserve: the newest of all tags.
ENDED_KEPT = 65_536
#: Held reservations are looked through for forgotten ones once every so many reserves.
SWEEP_EVERY = 4_096


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class _Tag:
    """What one tenant's keys would be in Redis. Names: (scope, dimension)."""

    __slots__ = ("buckets", "holds", "reservations")

    def __init__(self) -> None:
        self.buckets: dict[tuple[str, str], Bucket] = {}
        self.holds: dict[tuple[str, str], int] = {}
        self.reservations: dict[str, Reservation] = {}


class MemoryStore:
    """A ``quotas.ports.QuotaStore``. One event loop; ``now_ms`` is the store's clock."""

    def __init__(self, now_ms: Callable[[], int] = monotonic_ms) -> None:
        self.name = "memory"
        self.epoch = secrets.token_hex(8)
        self._now_ms = now_ms
        self._tags: dict[str, _Tag] = {}
        self._ended: deque[tuple[str, str]] = deque()
        self._deadlines: dict[tuple[str, str], int] = {}
        self._until_sweep = SWEEP_EVERY

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        kept = self._tag(tag)
        known = kept.reservations.get(reservation_id)
        if known is not None:
            if known.verdict is None:
                raise ReservationRefused("the id was ended before it was reserved")
            return known.verdict
        check_charges(charges)
        now_ms = self._now_ms()
        binding, retry_after_ms = self._examine(kept, charges, now_ms)
        admitted = binding < 0
        if admitted:
            self._take(kept, charges, now_ms)
        levels = tuple([self._level(kept, charge) for charge in charges])
        verdict = Verdict(admitted, levels, self.epoch, binding, retry_after_ms)
        if admitted:
            kept.reservations[reservation_id] = Reservation(State.HELD, tuple(charges), verdict)
            self._deadlines[tag, reservation_id] = now_ms + ttl_s * 1000
            self._until_sweep -= 1
            if self._until_sweep <= 0:
                self._sweep(now_ms)
        return verdict

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        kept = self._tag(settlement.tag)
        known = kept.reservations.get(settlement.reservation_id)
        if known is not None:
            before = known.move(Step.SETTLE)
            if before is not None:
                now_ms = self._now_ms()
                amounts = true_amounts(known.charges, settlement.charged)
                for charge, actual in zip(known.charges, amounts, strict=True):
                    if charge.limit.algorithm == "concurrency":
                        if before is State.HELD:
                            self._free(kept, charge)
                    elif charge.amount != actual:
                        self._bucket(kept, charge, now_ms).add(charge.amount - actual, now_ms)
                self._end(settlement.tag, settlement.reservation_id, known)
        elif settlement.epoch != self.epoch:
            now_ms = self._now_ms()
            for charge in settlement.charged:
                if charge.limit.algorithm == "bucket" and charge.amount:
                    self._bucket(kept, charge, now_ms).add(-charge.amount, now_ms)
            # Not in the ring of ended ids: it must outlive every retry, and is rare (recovery).
            kept.reservations[settlement.reservation_id] = Reservation(State.SETTLED)
        if done is not None:
            done()

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        kept = self._tag(tag)
        known = kept.reservations.get(reservation_id)
        if known is None:
            known = kept.reservations[reservation_id] = Reservation(State.TOMBSTONE)
            self._end(tag, reservation_id, known)
        else:
            before = known.move(Step.RELEASE)
            if before is not None:
                now_ms = self._now_ms()
                for charge in known.charges:
                    if charge.limit.algorithm == "concurrency":
                        if before is State.HELD:
                            self._free(kept, charge)
                    elif charge.amount:
                        self._bucket(kept, charge, now_ms).add(charge.amount, now_ms)
                self._end(tag, reservation_id, known)
        if done is not None:
            done()

    def expire(self, tag: str, reservation_id: str) -> None:
        kept = self._tag(tag)
        known = kept.reservations.get(reservation_id)
        if known is not None and known.move(Step.EXPIRE) is not None:
            for charge in known.charges:
                if charge.limit.algorithm == "concurrency":
                    self._free(kept, charge)

    def settle_lag_s(self) -> float:
        """Always 0: nothing is queued."""
        return 0.0

    async def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  nothing is ever queued
        return True

    async def ping(self) -> float:
        return 0.0

    async def close(self) -> None:
        """Nothing to let go of."""

    def _tag(self, tag: str) -> _Tag:
        kept = self._tags.get(tag)
        if kept is None:
            kept = self._tags[tag] = _Tag()
        return kept

    def _examine(self, kept: _Tag, charges: Sequence[Charge], now_ms: int) -> tuple[int, int]:
        """Bring every level to now; (binding, retry_after_ms), or (-1, 0) when all of it fits."""
        binding, longest = -1, 0
        buckets = kept.buckets
        for index, charge in enumerate(charges):
            limit, amount = charge.limit, charge.amount
            capacity = limit.capacity
            name = (limit.scope, limit.dimension)
            if limit.algorithm == "bucket":
                bucket = buckets.get(name)
                if bucket is None:  # untouched: full; made when something is taken
                    level = capacity * TICKS
                else:
                    level = bucket.configure(capacity, limit.per_minute, now_ms)
                if level >= amount * TICKS or amount == 0:
                    continue
                wait = wait_ms(level, amount, capacity, limit.per_minute)
            else:
                if amount == 0 or kept.holds.get(name, 0) + amount <= capacity:
                    continue
                wait = NEVER if amount > capacity else CONCURRENCY_RETRY_MS
            if longest != NEVER and (wait == NEVER or wait > longest):
                binding, longest = index, wait
        return binding, longest

    def _take(self, kept: _Tag, charges: Sequence[Charge], now_ms: int) -> None:
        for charge in charges:
            if not charge.amount:
                continue
            if charge.limit.algorithm == "bucket":
                self._bucket(kept, charge, now_ms).level -= charge.amount * TICKS
            else:
                name = (charge.limit.scope, charge.limit.dimension)
                kept.holds[name] = kept.holds.get(name, 0) + charge.amount

    def _level(self, kept: _Tag, charge: Charge) -> Level:
        limit = charge.limit
        name = (limit.scope, limit.dimension)
        if limit.algorithm == "bucket":
            bucket = kept.buckets.get(name)
            level = limit.capacity * TICKS if bucket is None else bucket.level
            return shown(level, limit.capacity, limit.per_minute)
        return Level(limit.capacity - kept.holds.get(name, 0), 0)

    def _bucket(self, kept: _Tag, charge: Charge, now_ms: int) -> Bucket:
        limit = charge.limit
        name = (limit.scope, limit.dimension)
        bucket = kept.buckets.get(name)
        if bucket is None:
            bucket = kept.buckets[name] = Bucket(limit.capacity, limit.per_minute, now_ms)
        return bucket

    def _free(self, kept: _Tag, charge: Charge) -> None:
        name = (charge.limit.scope, charge.limit.dimension)
        left = kept.holds.get(name, 0) - charge.amount
        if left > 0:
            kept.holds[name] = left
        else:
            kept.holds.pop(name, None)

    def _end(self, tag: str, reservation_id: str, ended: Reservation) -> None:
        """Remember an ended reservation among the newest; forget the oldest beyond the ring."""
        ended.charges = ()
        self._deadlines.pop((tag, reservation_id), None)
        self._ended.append((tag, reservation_id))
        if len(self._ended) > ENDED_KEPT:
            old_tag, old_id = self._ended.popleft()
            self._tags[old_tag].reservations.pop(old_id, None)

    def _sweep(self, now_ms: int) -> None:
        """Drop held reservations past their time: nothing goes back, their holds go free."""
        self._until_sweep = SWEEP_EVERY
        late = [name for name, deadline_ms in self._deadlines.items() if deadline_ms <= now_ms]
        for tag, reservation_id in late:
            self.expire(tag, reservation_id)
            del self._deadlines[tag, reservation_id]
            del self._tags[tag].reservations[reservation_id]
