"""The sums that money limits are counted from: asked for by a data process whose store lost them.

In this order, so that nothing is counted twice or forgotten: every data process of this host holds
its open requests again under the new epoch, journals are shipped, sums are read from SQL, and with
them goes what they include and whose settle may still arrive. One count a level and epoch: a later one
would undo what was charged since. An end user's spending is in no ledger and begins at nothing. Not here: the store (``gateway.balances`` hands them over).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

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


Level = tuple[str, str]


def level_of(limit: Limit) -> Level:
    """What tells two levels of money of a tag apart."""
    return limit.scope, limit.window


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
        # tag -> epoch, and when each level was handed out
        self._counted: dict[str, tuple[str, dict[Level, float]]] = {}
        self._number = 0
        self._waiting: dict[int, tuple[set[Peer], asyncio.Event]] = {}

    async def on_asked(self, _peer: Peer, body: bytes) -> bytes:
        """A data process's question. Raises what the database raises: the asker refuses money."""
        asked = msgspec.msgpack.decode(body, type=BalancesAsked)
        async with self._turn:
            known = self._counted.get(asked.tag)
            lost = known is None or known[0] != asked.epoch
            if known is None or lost:
                known = self._counted[asked.tag] = (asked.epoch, {})
                await self._rehold(asked.tag, asked.epoch)
            handed, now_s = known[1], time.monotonic()
            wanted = [
                limit
                for limit in asked.limits
                if now_s - handed.get(level_of(limit), -TRUSTED_S) >= TRUSTED_S
            ]
            if not wanted:
                return msgspec.msgpack.encode(BalancesAnswer(counted_before=True))
            await self._ship()
            seeds, counted = await self._seeds(asked.tenant_id, wanted)
            # A store that lost nothing knows what is open, under limits that it knew.
            unsettled = self._unsettled(asked.tag) if lost else ()
            answer = BalancesAnswer(seeds=seeds, counted=(*unsettled, *counted))
            handed.update(dict.fromkeys(map(level_of, wanted), time.monotonic()))
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

    async def _seeds(
        self, tenant_id: int, limits: Sequence[Limit]
    ) -> tuple[tuple[Seed, ...], tuple[str, ...]]:
        tenant = self._snapshot.tenants.get(tenant_id)
        if tenant is None:
            return (), ()
        counted: tuple[str, ...] = ()
        now_ms = time.time_ns() // 1_000_000
        seeds = []
        async with self._db.read() as connection:
            for limit in limits:
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
