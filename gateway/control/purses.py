"""Balances in the store, kept to what SQL says: moved by a credit at once, compared every hour.

So is what else moves a balance beside use: a correction, a month's true-up and reserved hours. Each
is one adjustment with an id, so it moves a balance once, however often and by whomever it
is handed over; a count from SQL (``gateway.control.balances``) names those that it includes. So a
process that was killed between SQL and the store, or found the store away, hands over a day's moves
again. Where reservations live in a data process's memory, that process is told over the link. Not
here: what a balance is (``gateway.store.credit``).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.link.messages import Credited
from gateway.link.server import LinkServer
from gateway.snapshot import Snapshot
from gateway.store.credit import balances, ended_grants, expire_grants, recent_moves
from gateway.store.database import Database
from gateway.store.hours import book_hours
from gateway.store.open_requests import is_alone
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.ports import QuotaStore

END_EVERY_S = 2.0
EXPIRE_EVERY_S = 60.0
COMPARE_EVERY_S = 3_600.0
#: A balance that moves while it is compared is compared again, this often.
TRIES = 5
TRY_AGAIN_S = 0.3
#: How soon after a failure credits are handed over again.
TICK_S = 0.5
#: Credits this old are handed over again; stores know their ids for a day.
RECENT_MS = 20 * 3_600_000
NANO_PER_MICRO = 1_000
_log = logging.getLogger("gateway.control.purses")


class Move(msgspec.Struct, frozen=True):
    """What moved a tenant's balance in SQL. ``entry_key`` is the adjustment's id. In another currency
    than its contract's it moves another purse than the one that requests are paid from.
    """

    tenant_id: int
    entry_key: str
    nano: int
    currency: str


class Purses:
    """One per control process. ``store`` None: reservations live in data processes' memory.

    ``unsettled``: request ids of a tag that SQL has and the store has not acknowledged.
    ``host``: this one; while no other ships to this database, nothing is under way unseen.
    """

    def __init__(
        self,
        db: Database,
        snapshot: Snapshot,
        link: LinkServer,
        store: QuotaStore | None,
        *,
        ship: Callable[[], Awaitable[None]],
        unsettled: Callable[[str], tuple[str, ...]],
        host: str,
    ) -> None:
        self._db = db
        self._snapshot = snapshot
        self._link = link
        self._store = store
        self._ship = ship
        self._unsettled = unsettled
        self._host = host
        self.drift_micro = 0  # of the last comparison: the sum over tenants, SQL less store
        self.corrected = 0
        #: Some process, or the store, may not know of every credit.
        self.behind = True
        self._ended_ms = 0  # grants that ended up to then are handed over

    async def credited(self, moves: Sequence[Move]) -> None:
        """Hand each on; what cannot be handed on now is as soon as the store answers."""
        try:
            await self._hand_over(moves)
        except StoreUnavailable:
            self.behind = True
            _log.warning("balances are moved when the store is back")

    async def catch_up(self) -> None:
        """Hand on what SQL was told lately: once each, whatever was handed on before.

        Raises ``StoreUnavailable``, and what the database raises when it is away.
        """
        now_ms = time.time_ns() // 1_000_000
        self.behind = False
        try:
            async with self._db.read() as connection:
                found = await recent_moves(connection, now_ms - RECENT_MS, now_ms)
            await self._hand_over([Move(*each) for each in found])
        except BaseException:
            self.behind = True
            raise
        self._ended_ms = now_ms

    async def end_grants(self) -> None:
        """Hand on what ended since the last look. Raises as ``catch_up`` does."""
        now_ms = time.time_ns() // 1_000_000
        async with self._db.read() as connection:
            found = await ended_grants(connection, self._ended_ms, now_ms)
        await self._hand_over([Move(*each) for each in found])
        self._ended_ms = max(now_ms, self._ended_ms)

    async def run(self) -> None:
        """Hand credits on where that failed, and that one ended; book the end of grants and engines'
        hours every minute; compare balances now and every hour.
        """
        end_at_s = expire_at_s = compare_at_s = time.monotonic()
        said = ""
        while True:
            now_s = time.monotonic()
            try:
                if self.behind:
                    await self.catch_up()
                if now_s >= end_at_s:
                    await self.end_grants()
                    end_at_s = now_s + END_EVERY_S
                if now_s >= expire_at_s:
                    async with self._db.begin() as connection:
                        now_ms = time.time_ns() // 1_000_000
                        await expire_grants(connection, now_ms)
                        await book_hours(connection, now_ms)
                    expire_at_s = now_s + EXPIRE_EVERY_S
                if now_s >= compare_at_s:
                    await self.compare()
                    compare_at_s = now_s + COMPARE_EVERY_S
                said = ""
            except (SQLAlchemyError, OSError, StoreUnavailable) as error:
                if said != type(error).__name__:  # once an outage
                    said = type(error).__name__
                    _log.warning("balances are kept later: %s", said)
            await asyncio.sleep(TICK_S)

    async def _hand_over(self, moves: Sequence[Move]) -> None:
        for move in moves:
            limit = self._balance_of(move.tenant_id)
            if limit is None or move.currency != self._snapshot.tenants[move.tenant_id].currency:
                continue
            tag, delta = f"t{move.tenant_id}", move.nano // NANO_PER_MICRO
            if self._store is None:
                said = Credited(tag, move.entry_key, limit, delta)
                self._link.broadcast("credited", msgspec.msgpack.encode(said))
            else:
                epoch = await self._store.epoch(tag)
                await self._store.adjust(tag, epoch, move.entry_key, limit, delta)

    async def compare(self) -> dict[int, int]:
        """Tenant id -> SQL's balance less the store's, in micro-units, of those that stood still.

        Each charge is rounded up, so the store's may lack one a record; that is given back here.
        """
        found: dict[int, int] = {}
        if self._store is None:
            return found
        alone = await is_alone(self._db, self._host)
        for tenant_id in list(self._snapshot.tenants):
            limit = self._balance_of(tenant_id)
            drift = None if limit is None else await self._drift(self._store, tenant_id, limit)
            if limit is None or drift is None:
                continue
            found[tenant_id] = drift
            if drift < 0:
                _log.error("%s: the store has %d micro more than SQL", limit.scope_name, -drift)
            if drift < 0 or (drift and alone):
                await self._correct(self._store, f"t{tenant_id}", limit, drift)
        self.drift_micro = sum(found.values())
        return found

    async def _correct(self, store: QuotaStore, tag: str, limit: Limit, drift: int) -> None:
        adjustment_id = f"drift:{tag}:{time.time_ns()}"
        if await store.adjust(tag, await store.epoch(tag), adjustment_id, limit, drift):
            self.corrected += 1

    async def _drift(self, store: QuotaStore, tenant_id: int, limit: Limit) -> int | None:
        """None where the balance is not in the store, or never stood still."""
        tag = f"t{tenant_id}"
        for _ in range(TRIES):
            before = await _level(store, tag, limit)
            if before is None:
                return None
            await self._ship()
            now_ms = time.time_ns() // 1_000_000
            async with self._db.read() as connection:
                held = await balances(connection, [tenant_id], now_ms)
                moves = await recent_moves(connection, now_ms - RECENT_MS, now_ms, [tenant_id])
            # A credit that is on its way moves the level now, or it would be given twice.
            await self._hand_over([Move(*each) for each in moves])
            level = held[tenant_id].available_nano // NANO_PER_MICRO
            if not self._unsettled(tag) and await _level(store, tag, limit) == before:
                return level - before
            await asyncio.sleep(TRY_AGAIN_S)
        return None

    def _balance_of(self, tenant_id: int) -> Limit | None:
        tenant = self._snapshot.tenants.get(tenant_id)
        limits = tenant.limits if tenant is not None else ()
        return next((limit for limit in limits if limit.algorithm == "balance"), None)


async def _level(store: QuotaStore, tag: str, limit: Limit) -> int | None:
    """Settled money in the store; None while something is held, or it is not there."""
    (gauge,) = (await store.inspect(tag, (Charge(limit, 0),))).gauges
    return None if gauge.held else gauge.balance
