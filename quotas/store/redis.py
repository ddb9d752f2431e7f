"""Reservations in Redis or Valkey: one Lua step each, server time, one hash tag a tenant.

``reserve`` is one awaited round trip. Settle, release and expire are jobs: queued, and sent until
acknowledged. A reserve whose caller was cancelled or ran out of time is released by id. Not here:
the rules (``lua/``, and their reference in ``quotas.buckets`` and ``quotas.reservation``), the
server (``quotas.store.server``), what to do while the store is away (the gateway's).
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import cast

import hiredis
import msgspec

from quotas.errors import ReservationRefused, StoreUnavailable
from quotas.limits import Charge, Gauge, Holder, Inspection, Limit, Reason, Verdict
from quotas.ports import Seed, Settlement
from quotas.reservation import CHARGED_IN_FULL_MS, ENDED_MS, LEASE_MS, TOMBSTONE_MS
from quotas.store.cluster import Cluster
from quotas.store.pipeline import Argument, first_word, parse_cluster, parse_url
from quotas.store.server import Job, Server
from quotas.store.specs import Spec, Specs, field
from quotas.store.steps import (
    ADJUST,
    CLAIM,
    EPOCH,
    EXPIRE,
    INSPECT,
    REHOLD,
    RELEASE,
    RENEW,
    RESERVE,
    SEED,
    SETTLE,
    UNCLAIM,
    Step,
)

#: A call that was not answered by then is given up: a request finds out within a quarter of a second.
TIMEOUT_S = 0.2
RENEW_EVERY_S = LEASE_MS / 3000
#: Between two looks at what is not acknowledged yet.
FLUSH_LOOK_S = 0.02
#: The tag whose owners are the processes that share this store.
PROCESSES_TAG = "processes"

_pack = msgspec.msgpack.Encoder().encode


class RedisStore:
    """A ``quotas.ports.QuotaStore``; one event loop. ``owner`` names this process, for its leases.

    ``clock_ms`` is the server's time at the last reply: for showing skew, never for a decision.
    """

    def __init__(self, url: str, *, name: str, owner: str, timeout_s: float = TIMEOUT_S) -> None:
        self.name = name
        self.clock_ms = 0
        self._owner = owner
        self._nonce = secrets.token_hex(3)  # with microseconds: 23 characters, a slot holds 24
        self._server: Server | Cluster
        if seeds := parse_cluster(url):
            self._server = Cluster(
                seeds, timeout_s=timeout_s, acknowledged=self._acknowledged, up=self._renew
            )
        else:
            self._server = Server(
                parse_url(url), timeout_s=timeout_s, acknowledged=self._acknowledged, up=self._renew
            )
        self._unacknowledged: dict[Job, None] = {}  # in the order they were queued
        self._idle = asyncio.Event()
        self._idle.set()
        self._renewing: asyncio.Task[None] | None = None
        self._specs = Specs()
        self._holding: dict[str, set[str]] = {}  # tag -> own open reservations with holds

    async def start(self) -> None:
        """Connect and load the steps. Raises ``StoreUnavailable``."""
        await self._server.start()
        self._renewing = asyncio.create_task(self._keep_leases(), name="store leases")

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        spec = self._specs.of(charges)
        amounts = spec.amounts(charges)
        keys = _keys(tag, reservation_id, spec.scopes)
        if not self._server.ready(keys[0]):
            raise StoreUnavailable("the store is not connected")  # nothing sent, nothing to release
        arguments = (
            self._nonce,
            self._owner,
            ttl_s * 1000,
            spec.packed,
            amounts,
        )
        if spec.holds(charges):
            self._holding.setdefault(tag, set()).add(reservation_id)
        try:
            reply = await self._call(RESERVE, keys, arguments)
        except (StoreUnavailable, asyncio.CancelledError):
            self.release(tag, reservation_id)
            raise
        self._note_clock(reply)
        if reply[1] != 1:
            self._let_go(tag, reservation_id)
        if reply[1] == -1:
            raise ReservationRefused("the id was ended before it was reserved")
        return _verdict(reply, spec)

    async def inspect(self, tag: str, charges: Sequence[Charge]) -> Inspection:
        spec = self._specs.of(charges)
        arguments = (self._owner, spec.packed, spec.amounts(charges))
        reply = await self._call(INSPECT, _keys(tag, "", spec.scopes), arguments)
        self._note_clock(reply)
        gauges = [
            _gauge(row, limit)
            for row, limit in zip(
                spec.in_order(cast("list[list[object]]", reply.pop())),
                [charge.limit for charge in charges],
                strict=True,
            )
        ]
        return Inspection(_verdict(reply, spec), tuple(gauges), self.clock_ms)

    async def epoch(self, tag: str) -> str:
        reply = await self._call(EPOCH, _keys(tag, ""), (self._nonce,))
        return cast(bytes, reply[1]).decode()

    async def seed(
        self, tag: str, epoch: str, seeds: Sequence[Seed], counted: Sequence[str] = ()
    ) -> bool:
        flat: list[str | int] = []
        for each in seeds:
            limit = each.limit
            flat += (limit.scope, field(limit), limit.algorithm, each.period_id, each.level)
        arguments = (self._nonce, epoch, _pack(flat), _pack(list(counted)), CHARGED_IN_FULL_MS)
        keys = _keys(tag, "", tuple(dict.fromkeys(each.limit.scope for each in seeds)))
        keys += [_reservation_key(tag, each) for each in counted]
        return (await self._call(SEED, keys, arguments))[1] == 1

    async def adjust(
        self, tag: str, epoch: str, adjustment_id: str, limit: Limit, delta: int
    ) -> bool:
        arguments = (self._nonce, epoch, limit.scope, field(limit), delta, CHARGED_IN_FULL_MS)
        keys = _keys(tag, adjustment_id, (limit.scope,))
        return (await self._call(ADJUST, keys, arguments))[1] == 1

    async def rehold(
        self, tag: str, reservation_id: str, epoch: str, charges: Sequence[Charge], ttl_s: int
    ) -> bool:
        spec = self._specs.of(charges)
        arguments = (
            self._nonce,
            epoch,
            self._owner,
            ttl_s * 1000,
            spec.packed,
            spec.amounts(charges),
        )
        if spec.holds(charges):
            self._holding.setdefault(tag, set()).add(reservation_id)
        reply = await self._call(REHOLD, _keys(tag, reservation_id, spec.scopes), arguments)
        return reply[1] == 1

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        self._let_go(settlement.tag, settlement.reservation_id)
        spec = self._specs.of(settlement.charged)
        arguments = (
            self._nonce,
            settlement.epoch,
            spec.packed,
            spec.amounts(settlement.charged),
            ENDED_MS,
            CHARGED_IN_FULL_MS,
        )
        keys = _keys(settlement.tag, settlement.reservation_id, spec.scopes)
        self._queue(Job(SETTLE, keys, arguments, done))

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        self._let_go(tag, reservation_id)
        arguments = (self._nonce, ENDED_MS, TOMBSTONE_MS)
        self._queue(Job(RELEASE, _keys(tag, reservation_id), arguments, done))

    def expire(self, tag: str, reservation_id: str) -> None:
        self._let_go(tag, reservation_id)
        self._queue(Job(EXPIRE, _keys(tag, reservation_id), (self._nonce,), None))

    async def claim(self, tag: str, name: str, request_id: str, ttl_s: int) -> str:
        if not self._server.ready(_claim_key(tag, name)):
            raise StoreUnavailable("the store is not connected")
        try:
            reply = await self._call(CLAIM, [_claim_key(tag, name)], (request_id, ttl_s * 1000))
        except (StoreUnavailable, asyncio.CancelledError):
            self.unclaim(tag, name, request_id)  # it may have been claimed
            raise
        self._note_clock(reply)
        held = reply[1]
        return held.decode() if isinstance(held, bytes) else str(held)

    def unclaim(self, tag: str, name: str, request_id: str) -> None:
        self._queue(Job(UNCLAIM, [_claim_key(tag, name)], (request_id,), None))

    async def heartbeat(self, *, leaving: bool = False) -> int:
        lease_ms = 0 if leaving else LEASE_MS
        arguments = (self._owner, lease_ms)
        return cast(int, (await self._call(RENEW, _keys(PROCESSES_TAG, ""), arguments))[1])

    def settle_lag_s(self) -> float:
        oldest = next(iter(self._unacknowledged), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.queued_s

    async def flush(self, timeout_s: float, part: str | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                if part is None:
                    await self._idle.wait()
                while self._owes(part):  # noqa: ASYNC110  other parts' jobs may wait for ever
                    await asyncio.sleep(FLUSH_LOOK_S)
        except TimeoutError:
            return False
        return True

    def _owes(self, part: str | None) -> bool:
        """Whether a job of the part is not acknowledged yet."""
        return any(self._server.part(job.keys[0]) == part for job in self._unacknowledged)

    def part(self, tag: str) -> str:
        return self._server.part(_epoch_key(tag))

    def reached(self, tag: str) -> bool:
        return self._server.reached(_epoch_key(tag))

    async def ping(self, part: str | None = None) -> float:
        sent_s = time.perf_counter()
        try:
            await self._server.ping(part)
        except hiredis.ReplyError as error:
            raise StoreUnavailable(f"the store answered {first_word(error)}") from None
        return time.perf_counter() - sent_s

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._server.close()
        self._unacknowledged.clear()

    async def _call(
        self, step: Step, keys: list[str], arguments: tuple[Argument, ...]
    ) -> list[object]:
        """One step's reply; every error reply is the store's unavailability, by its first word."""
        try:
            reply = await self._server.call(step, keys, arguments)
        except hiredis.ReplyError as error:
            raise StoreUnavailable(f"the store answered {first_word(error)}") from None
        return cast(list[object], reply)

    def _queue(self, job: Job) -> None:
        self._unacknowledged[job] = None
        self._idle.clear()
        self._server.queue(job)

    def _acknowledged(self, job: Job, reply: object) -> None:
        self._note_clock(reply)
        self._unacknowledged.pop(job, None)
        if job.done is not None:
            # Not here: what a caller raises must not break the order of replies.
            asyncio.get_running_loop().call_soon(job.done)
        if not self._unacknowledged:
            self._idle.set()

    def _note_clock(self, reply: object) -> None:
        self.clock_ms = cast("list[int]", reply)[0]

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self._renew()

    def _renew(self) -> None:
        """One command a tag, all in one write. A lease that could not be renewed runs out."""
        arguments = (self._owner, LEASE_MS)
        for tag in self._holding:
            self._server.tell(RENEW, _keys(tag, ""), arguments)

    def _let_go(self, tag: str, reservation_id: str) -> None:
        held = self._holding.get(tag)
        if held is not None:
            held.discard(reservation_id)
            if not held:
                del self._holding[tag]


def _claim_key(tag: str, name: str) -> str:
    return f"tf2:{{{tag}}}:c:{name}"


def _reservation_key(tag: str, reservation_id: str) -> str:
    return f"tf2:{{{tag}}}:r:{reservation_id}"


def _epoch_key(tag: str) -> str:
    return f"tf2:{{{tag}}}:epoch"


def _keys(tag: str, reservation_id: str, scopes: tuple[str, ...] = ()) -> list[str]:
    epoch, rest = _named(tag, scopes)
    return [epoch, _reservation_key(tag, reservation_id), *rest]


@lru_cache(maxsize=16_384)
def _named(tag: str, scopes: tuple[str, ...]) -> tuple[str, list[str]]:
    """The keys that are a tag's whatever the request: requests of a key have the same again and again."""
    scoped = [f"tf2:{{{tag}}}:s:{scope}" for scope in scopes]
    return _epoch_key(tag), [f"tf2:{{{tag}}}:leases", *scoped]


def _verdict(reply: list[object], spec: Spec) -> Verdict:
    _, admitted, epoch, levels, shadowed, *refusal = cast(
        "tuple[int, int, bytes, bytes, bytes, object]", reply
    )
    if not refusal and not shadowed:
        return Verdict(True, spec.levels(levels), epoch.decode())  # noqa: FBT003
    binding, retry_after_ms, reason = cast("tuple[int, int, bytes]", refusal or (-1, 0, b""))
    rows = spec.rows
    return Verdict(
        admitted == 1,
        spec.levels(levels),
        epoch.decode(),
        rows[binding] if binding >= 0 else -1,
        retry_after_ms,
        cast(Reason, reason.decode()),
        tuple(sorted(rows[int(row)] for row in shadowed.split())),
    )


def _gauge(row: list[object], limit: Limit) -> Gauge:
    used, held, balance, *holders = cast("tuple[int, int, bytes | None, object]", row)
    if limit.algorithm == "balance":
        return Gauge(used, held, None if balance is None else int(balance))
    held_by = cast("list[bytes | int]", holders)
    return Gauge(
        used,
        held,
        holders=tuple(
            [
                Holder(cast(bytes, owner).decode(), cast(int, holds), cast(int, lease_ms))
                for owner, holds, lease_ms in zip(
                    held_by[::3], held_by[1::3], held_by[2::3], strict=True
                )
            ]
        ),
    )
