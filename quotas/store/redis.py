"""Reservations in Redis or Valkey: one Lua script a step, server time, one hash tag a tenant.

``reserve`` is one awaited round trip. Settle, release and expire are jobs: sent in the tick they
are queued in, sent again on every new connection until acknowledged (each acts once, however often
it arrives). A reserve whose caller was cancelled or ran out of time is released by id. Not here:
the rules (``lua/``, and their reference in ``quotas.buckets`` and ``quotas.reservation``), the
connection (``quotas.store.pipeline``), what to do while the store is away (the gateway's).
"""

import asyncio
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import hiredis
import msgspec

from quotas.errors import ReservationRefused, StoreUnavailable
from quotas.limits import Charge, Gauge, Holder, Inspection, Level, Limit, Reason, Verdict
from quotas.ports import Seed, Settlement
from quotas.reservation import CHARGED_IN_FULL_MS, ENDED_MS, LEASE_MS, TOMBSTONE_MS
from quotas.store.pipeline import Argument, Command, Pipeline, parse_url
from quotas.store.specs import Spec, Specs, field

RENEW_EVERY_S = LEASE_MS / 3000
#: Leases of a tag are forgotten when nobody has renewed one for this long.
LEASES_KEPT_MS = 86_400_000
#: Jobs in flight at once, so that a backlog after an outage does not stand before admissions.
WINDOW = 256
#: An error reply (loading, read-only, out of memory) is a state that passes; ask again after this.
RETRY_S = 0.25

_LUA = Path(__file__).with_name("lua")


class _Script:
    """One step's source, led by the parts that it shares with others."""

    __slots__ = ("sha", "source")

    def __init__(self, *parts: str) -> None:
        self.source = b"\n".join((_LUA / f"{part}.lua").read_bytes() for part in parts)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    def command(
        self, keys: Sequence[str], arguments: Sequence[Argument], *, whole: bool = False
    ) -> Command:
        """By digest; ``whole`` sends the source, for a server that lost it."""
        how = ("EVAL", self.source) if whole else ("EVALSHA", self.sha)
        return (*how, len(keys), *keys, *arguments)


RESERVE = _Script("levels", "judge", "reserve")
INSPECT = _Script("levels", "judge", "inspect")
REHOLD = _Script("levels", "judge", "rehold")
SETTLE = _Script("levels", "moves", "settle")
RELEASE = _Script("levels", "moves", "release")
EXPIRE = _Script("levels", "moves", "expire")
SEED = _Script("levels", "moves", "seed")
ADJUST = _Script("levels", "adjust")
EPOCH = _Script("levels", "epoch")
RENEW = _Script("levels", "renew")
CLAIM = _Script("levels", "claim")
UNCLAIM = _Script("levels", "unclaim")
SCRIPTS = (
    *(RESERVE, SETTLE, RELEASE, EXPIRE, RENEW, INSPECT, EPOCH, SEED, ADJUST, REHOLD),
    *(CLAIM, UNCLAIM),
)

T = TypeVar("T")

_pack = msgspec.msgpack.Encoder().encode


class _Job:
    """A step that is sent until it is acknowledged."""

    __slots__ = ("arguments", "done", "keys", "queued_s", "script", "whole")

    def __init__(
        self,
        script: _Script,
        keys: list[str],
        arguments: tuple[Argument, ...],
        done: Callable[[], None] | None,
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.done = done
        self.queued_s = time.monotonic()
        self.whole = False


class RedisStore:
    """A ``quotas.ports.QuotaStore``; one event loop. ``owner`` names this process, for its leases.

    ``clock_ms`` is the server's time at the last reply: for showing skew, never for a decision.
    """

    def __init__(self, url: str, *, name: str, owner: str, timeout_s: float = 0.25) -> None:
        self.name = name
        self.clock_ms = 0
        self._owner = owner
        self._nonce = secrets.token_hex(3)  # with microseconds: 23 characters, a slot holds 24
        self._pipeline = Pipeline(
            parse_url(url),
            timeout_s=timeout_s,
            greeting=tuple(("SCRIPT", "LOAD", script.source) for script in SCRIPTS),
            up=self._on_up,
        )
        self._unacknowledged: dict[_Job, None] = {}  # in the order they were queued
        self._unsent: deque[_Job] = deque()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._retry: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._specs = Specs()
        self._holding: dict[str, set[str]] = {}  # tag -> own open reservations with holds

    async def start(self) -> None:
        """Connect and load the scripts. Raises ``StoreUnavailable``."""
        await self._pipeline.start()
        self._renewing = asyncio.create_task(self._keep_leases(), name="store leases")

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        spec = self._specs.of(charges)
        amounts = spec.amounts(charges)
        if not self._pipeline.connected:
            raise StoreUnavailable("the store is not connected")  # nothing sent, nothing to release
        arguments = (
            self._nonce,
            self._owner,
            reservation_id,
            ttl_s * 1000,
            LEASE_MS,
            LEASES_KEPT_MS,
            spec.packed,
            amounts,
        )
        if spec.holds(charges):
            self._holding.setdefault(tag, set()).add(reservation_id)
        try:
            reply = await self._call(RESERVE, _keys(tag, reservation_id, spec.scopes), arguments)
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
                _in_order(cast("list[list[object]]", reply.pop()), spec),
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
        return (await self._call(SEED, _keys(tag, ""), arguments))[1] == 1

    async def adjust(
        self, tag: str, epoch: str, adjustment_id: str, limit: Limit, delta: int
    ) -> bool:
        arguments = (self._nonce, epoch, limit.scope, field(limit), delta, CHARGED_IN_FULL_MS)
        return (await self._call(ADJUST, _keys(tag, adjustment_id), arguments))[1] == 1

    async def rehold(
        self, tag: str, reservation_id: str, epoch: str, charges: Sequence[Charge], ttl_s: int
    ) -> bool:
        spec = self._specs.of(charges)
        arguments = (
            self._nonce,
            epoch,
            self._owner,
            reservation_id,
            ttl_s * 1000,
            LEASE_MS,
            LEASES_KEPT_MS,
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
        self._queue(_Job(SETTLE, keys, arguments, done))

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        self._let_go(tag, reservation_id)
        arguments = (self._nonce, ENDED_MS, TOMBSTONE_MS)
        self._queue(_Job(RELEASE, _keys(tag, reservation_id), arguments, done))

    def expire(self, tag: str, reservation_id: str) -> None:
        self._let_go(tag, reservation_id)
        self._queue(_Job(EXPIRE, _keys(tag, reservation_id), (self._nonce,), None))

    async def claim(self, tag: str, name: str, request_id: str, ttl_s: int) -> str:
        if not self._pipeline.connected:
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
        self._queue(_Job(UNCLAIM, [_claim_key(tag, name)], (request_id,), None))

    def settle_lag_s(self) -> float:
        oldest = next(iter(self._unacknowledged), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.queued_s

    async def flush(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def ping(self) -> float:
        sent_s = time.perf_counter()
        try:
            await self._pipeline.call(("PING",))
        except hiredis.ReplyError as error:
            raise StoreUnavailable(f"the store answered {_code(error)}") from None
        return time.perf_counter() - sent_s

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._unsent.clear()
        await self._pipeline.close()
        if self._retry is not None:
            self._retry.cancel()
        self._unsent.clear()
        self._unacknowledged.clear()

    async def _call(
        self, script: _Script, keys: list[str], arguments: tuple[Argument, ...]
    ) -> list[object]:
        """One script's reply; every error reply is the store's unavailability, by its first word."""
        try:
            try:
                reply = await self._pipeline.call(script.command(keys, arguments))
            except hiredis.ReplyError as error:
                if _code(error) != "NOSCRIPT":
                    raise
                reply = await self._pipeline.call(script.command(keys, arguments, whole=True))
        except hiredis.ReplyError as error:
            self._note(error)
            raise StoreUnavailable(f"the store answered {_code(error)}") from None
        return cast(list[object], reply)

    def _queue(self, job: _Job) -> None:
        self._unacknowledged[job] = None
        self._idle.clear()
        self._unsent.append(job)
        self._pump()

    def _pump(self) -> None:
        """Send what the window and the connection allow."""
        while self._unsent and self._in_flight < WINDOW and self._pipeline.connected:
            job = self._unsent.popleft()
            self._in_flight += 1
            command = job.script.command(job.keys, job.arguments, whole=job.whole)
            try:
                self._pipeline.send(command, partial(self._answered, job))
            except StoreUnavailable as lost:
                self._answered(job, lost)
                return

    def _answered(self, job: _Job, reply: object) -> None:
        self._in_flight -= 1
        if isinstance(reply, Exception):
            self._unsent.append(job)
            if isinstance(reply, hiredis.ReplyError):
                self._note(reply)
                job.whole = _code(reply) == "NOSCRIPT"
                self._retry_soon()
            return
        self._note_clock(reply)
        self._unacknowledged.pop(job, None)
        if job.done is not None:
            # Not here: what a caller raises must not break the order of replies.
            asyncio.get_running_loop().call_soon(job.done)
        if not self._unacknowledged:
            self._idle.set()
        elif self._unsent:
            self._pump()

    def _note_clock(self, reply: object) -> None:
        self.clock_ms = cast("list[int]", reply)[0]

    def _note(self, error: hiredis.ReplyError) -> None:
        if _code(error) == "READONLY":  # a failover left us with a replica; the name may know more
            self._pipeline.reconnect()

    def _retry_soon(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._pump()

    def _on_up(self) -> None:
        self._renew()
        self._pump()

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self._renew()

    def _renew(self) -> None:
        """One command a tag, all in one write. A lease that could not be renewed runs out."""
        arguments = (self._owner, LEASE_MS, LEASES_KEPT_MS)
        for tag in self._holding:
            if self._pipeline.connected:
                command = RENEW.command(_keys(tag, ""), arguments)
                self._pipeline.send(command, _ignore)

    def _let_go(self, tag: str, reservation_id: str) -> None:
        held = self._holding.get(tag)
        if held is not None:
            held.discard(reservation_id)
            if not held:
                del self._holding[tag]


def _claim_key(tag: str, name: str) -> str:
    return f"tf:{{{tag}}}:c:{name}"


def _keys(tag: str, reservation_id: str, scopes: Sequence[str] = ()) -> list[str]:
    keys = [f"tf:{{{tag}}}:epoch", f"tf:{{{tag}}}:r:{reservation_id}", f"tf:{{{tag}}}:leases"]
    keys += [f"tf:{{{tag}}}:s:{scope}" for scope in scopes]
    return keys


def _verdict(reply: list[object], spec: Spec) -> Verdict:
    _, admitted, epoch, binding, retry_after_ms, reason, shadowed, *numbers = cast(
        "tuple[int, int, bytes, int, int, bytes, bytes, int]", reply
    )
    levels = [
        Level(remaining, reset_ms)
        for remaining, reset_ms in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    if admitted == 1 and not shadowed:
        return Verdict(True, tuple(_in_order(levels, spec)), epoch.decode())  # noqa: FBT003
    rows = spec.rows
    return Verdict(
        admitted == 1,
        tuple(_in_order(levels, spec)),
        epoch.decode(),
        rows[binding] if binding >= 0 else -1,
        retry_after_ms,
        cast(Reason, reason.decode()),
        tuple(sorted(rows[int(row)] for row in shadowed.split())),
    )


def _in_order(rows: list[T], spec: Spec) -> list[T]:
    return rows if spec.order is None else [rows[row] for row in spec.order]


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


def _ignore(reply: object) -> None:
    """A renewal that failed: the next one is soon enough."""


def _code(error: Exception) -> str:
    """The error's first word: the rest may repeat what was sent."""
    return str(error).split(" ", 1)[0][:32]
