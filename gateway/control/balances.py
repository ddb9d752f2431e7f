"""The sums that money limits are counted from: asked for by a data process whose store lost them.

In this order, so that nothing is counted twice or forgotten: every data process of this host holds
its open requests again under the new epoch, journals are shipped, sums are read from SQL, and with
them goes what they include and whose settle may still arrive. One count a tenant and epoch: a later
one would undo what was charged since. Not here: the store (``gateway.balances`` hands them over).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.link.messages import BalancesAnswer, BalancesAsked, Reheld, Rehold
from gateway.link.server import LinkServer, Peer
from gateway.snapshot import Snapshot, TenantDoc
from gateway.store.database import Database
from gateway.store.spending import parse_scope, spent_micro
from gateway.terms import Calendars
from quotas.calendar import covering
from quotas.limits import Limit
from quotas.ports import Seed

REHOLD_S = 0.5
#: A count that was handed out and never reached the store is made again after this.
TRUSTED_S = 2.0
#: Tenant id -> balance in micro-units of its currency, and the adjustments that it includes and
#: that may still arrive.
Levels = Callable[[AsyncConnection, int], Awaitable[tuple[int, tuple[str, ...]]]]


async def no_balance(_connection: AsyncConnection, _tenant_id: int) -> tuple[int, tuple[str, ...]]:
    """Where nothing is paid in advance: nobody has a balance."""
    return 0, ()


class Balances:
    """One per control process. ``ship``: bring what ended into the ledger; ``unsettled``: request
    ids of a tag that the ledger has and the store has not acknowledged; ``level``: what SQL says of a
    tenant's balance.
    """

    def __init__(
        self,
        db: Database,
        snapshot: Snapshot,
        link: LinkServer,
        *,
        ship: Callable[[], Awaitable[None]],
        unsettled: Callable[[str], tuple[str, ...]],
        level: Levels,
    ) -> None:
        self._db = db
        self._snapshot = snapshot
        self._link = link
        self._ship = ship
        self._unsettled = unsettled
        self._level = level
        self._calendars = Calendars()
        self._turn = asyncio.Lock()
        self._counted: dict[str, tuple[str, float]] = {}  # tag -> epoch, when it was handed out
        self._number = 0
        self._waiting: dict[int, tuple[set[Peer], asyncio.Event]] = {}

    async def on_asked(self, _peer: Peer, body: bytes) -> bytes:
        """A data process's question. Raises what the database raises: the asker refuses money."""
        asked = msgspec.msgpack.decode(body, type=BalancesAsked)
        async with self._turn:
            known = self._counted.get(asked.tag)
            now_s = time.monotonic()
            if known is not None and known[0] == asked.epoch and now_s - known[1] < TRUSTED_S:
                return msgspec.msgpack.encode(BalancesAnswer(counted_before=True))
            await self._rehold(asked.tag, asked.epoch)
            await self._ship()
            seeds, counted = await self._seeds(asked.tenant_id)
            answer = BalancesAnswer(seeds=seeds, counted=(*self._unsettled(asked.tag), *counted))
            self._counted[asked.tag] = (asked.epoch, time.monotonic())
        return msgspec.msgpack.encode(answer)

    def on_reheld(self, peer: Peer, body: bytes) -> None:
        said = msgspec.msgpack.decode(body, type=Reheld)
        waiting = self._waiting.get(said.number)
        if waiting is not None:
            waiting[0].discard(peer)
            if not waiting[0]:
                waiting[1].set()

    async def _rehold(self, tag: str, epoch: str) -> None:
        """Every process's open requests; one that does not answer has its settles charged in full."""
        peers = {peer for peer in self._link.peers if peer.hello is not None}
        if not peers:
            return
        self._number += 1
        number, done = self._number, asyncio.Event()
        self._waiting[number] = (peers, done)
        try:
            body = msgspec.msgpack.encode(Rehold(number, tag, epoch))
            self._link.broadcast("rehold", body)
            async with asyncio.timeout(REHOLD_S):
                await done.wait()
        except TimeoutError:
            pass
        finally:
            del self._waiting[number]

    async def _seeds(self, tenant_id: int) -> tuple[tuple[Seed, ...], tuple[str, ...]]:
        tenant = self._snapshot.tenants.get(tenant_id)
        if tenant is None:
            return (), ()
        counted: tuple[str, ...] = ()
        now_ms = time.time_ns() // 1_000_000
        seeds = []
        async with self._db.read() as connection:
            for limit in self._money_limits(tenant):
                if limit.algorithm == "balance":
                    level, counted = await self._level(connection, tenant_id)
                    seeds.append(Seed(limit, level))
                else:
                    seeds.append(await self._budget(connection, tenant, limit, now_ms))
        return tuple(seeds), counted

    async def _budget(
        self, connection: AsyncConnection, tenant: TenantDoc, limit: Limit, now_ms: int
    ) -> Seed:
        periods = self._calendars.of(tenant.time_zone).at(limit.window, now_ms)
        begins_ms, ends_ms, name = periods.begins_ms, periods.ends_ms, periods.this_id
        if covering(periods, now_ms) == 1:
            begins_ms, ends_ms, name = periods.ends_ms, periods.next_ends_ms, periods.next_id
        scope = parse_scope(limit.scope)
        used = 0
        if scope is not None:
            used = await spent_micro(connection, scope, tenant.currency, begins_ms, ends_ms)
        return Seed(limit, used, name)

    def _money_limits(self, tenant: TenantDoc) -> list[Limit]:
        """Every limit of money that shares the tenant's tag."""
        snapshot = self._snapshot
        projects = [each for each in snapshot.projects.values() if each.tenant_id == tenant.id]
        ids = {each.id for each in projects}
        keys = [each for each in snapshot.keys.values() if each.project_id in ids]
        found = []
        for scope in (tenant, *projects, *keys):
            for limits in (scope.limits, *scope.model_limits.values()):
                found += [limit for limit in limits if limit.dimension == "money"]
        return found
