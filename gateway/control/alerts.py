"""Alerts: what webhooks are told of budgets, balances and endpoints, each thing once.

One host looks, once a second, and only where a webhook is declared: at budgets and balances when the
ledger has moved, at endpoints as its own probes see them. What was told is in SQL, so neither a restart
nor another host tells it again. Not here: tallies (``gateway.control.budgets``), delivering
(``gateway.control.deliveries``).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from gateway.control.budgets import Record, Tallies, budgets_in
from gateway.events import Event
from gateway.snapshot import Snapshot
from gateway.store import alerts as kept
from gateway.store import duties
from gateway.store.alerts import Watched
from gateway.store.credit import balances
from gateway.store.database import Database
from gateway.terms import Calendars
from quotas.money import decimal
from routing.signals import EndpointSignals

EVERY_S = 1.0
DUTY = "alerts"
DUTY_MS = 15_000
PAGE = 5_000
_log = logging.getLogger("gateway.control.alerts")


class Alerts:
    """One per control process. ``signals``: endpoint id -> what probes know; ``owner`` names this
    host for ever.
    """

    def __init__(
        self,
        db: Database,
        snapshot: Snapshot,
        signals: Callable[[], Mapping[int, EndpointSignals]],
        *,
        owner: str,
        unix_ms: Callable[[], int],
    ) -> None:
        self._db = db
        self._snapshot = snapshot
        self._signals = signals
        self._owner = owner
        self._unix_ms = unix_ms
        self._calendars = Calendars()
        self._forget()

    def _forget(self) -> None:
        """Begin anew: another host may have looked meanwhile."""
        self._tallies = Tallies()
        self._last_id = 0
        self._raised: dict[str, bool] = {}
        self._renewed_s = float("-inf")

    async def run(self) -> None:
        """Look until cancelled. Failures are tried again."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("alerts wait for the database: %s", type(error).__name__)
                self._forget()

    async def look(self) -> None:
        """Once, at everything."""
        async with self._db.read() as connection:
            told = await kept.is_anybody_told(connection)
        if not told or not await self._is_ours():
            self._forget()
            return
        await self._look_at_endpoints()
        await self._look_at_balances()
        await self._look_at_budgets()

    async def _is_ours(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._renewed_s + DUTY_MS / 3_000:
            return True
        if not await duties.hold(self._db, DUTY, self._owner, DUTY_MS):
            return False
        self._renewed_s = now_s
        return True

    async def _look_at_endpoints(self) -> None:
        signals = self._signals()
        for pool in self._snapshot.pools.values():
            for endpoint in pool.endpoints:
                known = signals.get(endpoint.id)
                if known is None or known.healthy is None:
                    continue
                data: dict[str, object] = {"endpoint": endpoint.url, "pool": pool.name}
                await self._cross(
                    f"endpoint:{endpoint.id}",
                    not known.healthy,
                    ("endpoint.down", "endpoint.up"),
                    "",
                    data,
                )

    async def _look_at_balances(self) -> None:
        async with self._db.read() as connection:
            watched = await kept.watched_tenants(connection)
            ids = [each.tenant_id for each in watched]
            found = await balances(connection, ids, self._unix_ms()) if ids else {}
        for each in watched:
            balance = found[each.tenant_id]
            low = balance.available_nano < each.low_nano
            data = _balance_data(each, balance.available_nano, balance.currency)
            await self._cross(
                f"balance:{each.tenant_id}", low, ("balance.low", None), each.name, data
            )

    async def _cross(
        self,
        subject: str,
        raised: bool,  # noqa: FBT001 -- a state, named at every call
        types: tuple[str, str | None],
        tenant: str,
        data: dict[str, object],
    ) -> None:
        """``types``: of the alert when it is raised, and when it is over (None: not told)."""
        if self._raised.get(subject) == raised:
            return

        def told(times: int) -> Event | None:
            kind = types[0] if raised else types[1]
            if kind is None:
                return None
            event_id = f"{kind.replace('.', '_')}:{subject.partition(':')[2]}:{times}"
            return Event(id=event_id, type=kind, subject=tenant, time_ms=self._unix_ms(), data=data)

        await kept.cross(self._db, subject, raised=raised, told=told)
        self._raised[subject] = raised

    async def _look_at_budgets(self) -> None:
        now_ms = self._unix_ms()
        new = self._tallies.follow(budgets_in(self._snapshot, self._calendars, now_ms))
        async with self._db.read() as connection:
            last_id = await kept.last_record(connection)
            while self._last_id < last_id and self._tallies.spent_nano:
                page = await kept.spent_since(connection, self._last_id, last_id, PAGE)
                for each in page:
                    self._tallies.add(_record(each))
                self._last_id = page[-1].id if page else last_id
            answers: dict[object, dict[int, int]] = {}
            for budget in new:
                asked = budget.asked
                if asked not in answers:
                    answers[asked] = await kept.spent_by(connection, *asked, last_id)
                self._tallies.spent_nano[budget.name] = answers[asked].get(budget.row_id, 0)
        self._last_id = last_id
        for event in self._tallies.passed(now_ms):
            await kept.raise_once(self._db, event)


def _record(row: kept.Spent) -> Record:
    owners = {"tenant_id": row.tenant_id, "project_id": row.project_id, "key_id": row.key_id}
    return Record(owners, row.model_id, row.currency, row.started_ms, row.cost_nano)


def _balance_data(watched: Watched, available_nano: int, currency: str) -> dict[str, object]:
    return {
        "tenant": watched.name,
        "available": decimal(available_nano),
        "below": decimal(watched.low_nano),
        "currency": currency,
    }
