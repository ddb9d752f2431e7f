"""What the control process and a command without a server share: database, feed, shipper, app.

Built once by a composition root, opened, closed. Not here: processes, sockets, timers
(``gateway.controlplane``).
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.applications import Starlette

from gateway import __version__, identity
from gateway.control.alerts import Alerts
from gateway.control.almanac import Almanac
from gateway.control.announcements import Announcements
from gateway.control.app import ControlDeps, build_app
from gateway.control.balances import Balances
from gateway.control.capabilities import probe_endpoint
from gateway.control.deliveries import Deliveries
from gateway.control.diagnosis import Finding
from gateway.control.examination import examine
from gateway.control.explanations import Explanations
from gateway.control.feed import Feed
from gateway.control.generations import Generations
from gateway.control.metrics import render
from gateway.control.probes import HEALTH_EVERY_S, UNHEALTHY_AFTER, Prober, targets_in
from gateway.control.purses import Purses
from gateway.control.reads import Reads
from gateway.control.reconciler import QUIET_MS, Reconciler
from gateway.control.totals import Totals
from gateway.control.usages import Usages
from gateway.datafolder import DataFolder
from gateway.link.messages import Signals
from gateway.link.server import LinkServer
from gateway.loader import Loader
from gateway.metering.inquest import context_from
from gateway.metering.reconcile import Report
from gateway.metering.shipper import Shipper
from gateway.settings import Settings
from gateway.signing import Signer
from gateway.store.credit import levels_micro
from gateway.store.database import PepperMismatch, open_database
from gateway.store.ledger import Pair, count_quarantined, insert_records, known_ids
from gateway.wire.fetch import fetch
from quotas.ports import QuotaStore
from routing.topology import Endpoint

#: Batches of records under way to PostgreSQL at once: it works on one while the next is priced.
LANES = 2
#: What is left to ship when the host stops gets this long.
LAST_SHIPPING_S = 5.0
_log = logging.getLogger("gateway.control")


class ControlFailed(Exception):
    """The database cannot be opened; the message says what to change."""


class Core:
    """``store`` None: reservations lived in the memory of data processes.

    ``reachable_store``: what the doctor may ask; None where the store does not run now. ``environ``
    holds the engines' credentials; ``host_pid`` names this life of the host.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pepper: str,
        operator_token: str,
        store: QuotaStore | None,
        reachable_store: QuotaStore | None,
        environ: Mapping[str, str],
        host_pid: int,
    ) -> None:
        data_dir = Path(settings.data_dir)
        try:
            self.db = open_database(settings.database_url, data_dir)
        except ValueError as error:
            raise ControlFailed(f"{error}; see TF_DATABASE_URL") from None
        self.settings = settings
        self.store = store
        self._reachable_store = reachable_store
        self._environ = environ
        self.link = LinkServer({})
        self.almanac = Almanac(self.db, self._changed, unix_ms)
        self.feed = Feed(Loader(self.db, unix_ms), self.link, data_dir / "snapshot")
        self.shipper = Shipper(
            data_dir,
            self._insert,
            store,
            context_from(self.feed.snapshot),
            known=lambda ids: known_ids(self.db, ids),
            lanes=1 if self.db.is_sqlite else LANES,
        )
        self.reads = Reads(
            {
                "/v1/generation": Generations(self.db, data_dir, self._ship).look,
                "/v1/usage": Usages(self.db, self._ship).look,
            }
        )
        self.explanations = Explanations(self.feed.snapshot, self.link)
        self.balances = Balances(
            self.db,
            self.feed.snapshot,
            self.link,
            ship=self._ship,
            unsettled=self.shipper.unsettled_of,
            levels=_levels,
        )
        self.purses = Purses(
            self.db,
            self.feed.snapshot,
            self.link,
            store,
            ship=self._ship,
            unsettled=self.shipper.unsettled_of,
            host=DataFolder(settings.data_dir).host_id(),
        )
        self.totals = Totals(data_dir / "counters", host_pid)
        context = context_from(self.feed.snapshot)
        self.reconciler = Reconciler(
            self.db,
            data_dir,
            ship=self._ship,
            endpoint_name=context.endpoint_name,
            unix_ms=unix_ms,
            host=DataFolder(settings.data_dir).host_id(),
            others=settings.hosts > 1,
            kept_days=settings.reconciliations_kept_days,
        )
        self.prober = self._new_prober(HEALTH_EVERY_S)
        self.deliveries = Deliveries(
            self.db,
            fetch,
            owner=DataFolder(settings.data_dir).host_id(),
            environ=environ,
            unix_ms=unix_ms,
            chance=random.random,
        )
        self.alerts = Alerts(
            self.db,
            self.feed.snapshot,
            self.prober.signals,
            owner=DataFolder(settings.data_dir).host_id(),
            unix_ms=unix_ms,
        )
        self.announcements: Announcements | None = None
        if settings.redis_url:  # one that other hosts may share
            self.announcements = Announcements(settings.redis_url, self.feed.poll)
        self._quarantined_rows = 0
        self._signer = Signer(DataFolder(settings.data_dir).statement_key())
        self._pepper = pepper.encode()
        self._operator_token = operator_token

    async def open(self) -> None:
        """Migrate, check the pepper, load; raises ``ControlFailed``."""
        try:
            await self.db.migrate()
            await self.db.check_pepper(identity.fingerprint(self._pepper))
            await self.feed.start()
        except PepperMismatch as error:
            raise ControlFailed(str(error)) from None
        except (SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise ControlFailed(
                f"the database cannot be used: {reason}; see TF_DATABASE_URL"
            ) from None

    async def ship_the_rest(self) -> bool:
        """After the last data process: until nothing is owed; False when time ran out."""
        try:
            async with asyncio.timeout(LAST_SHIPPING_S):
                await self.shipper.ship_once()
                while not self.shipper.drained:
                    if self.store is not None:
                        await self.store.flush(1.0)
                    await self.shipper.ship_once()
        except (TimeoutError, SQLAlchemyError, OSError) as error:
            _log.warning("the next start ships what is left (%s)", type(error).__name__)
            return False
        return True

    async def close(self) -> None:
        """Let go of everything; what is not shipped waits in its journal."""
        await self.link.close()
        await self.prober.close()
        await self.deliveries.close()
        if self.announcements is not None:
            await self.announcements.close()
        await self.shipper.close()
        await self.feed.try_to_keep_file()
        if self.store is not None:
            await self.store.close()
        await self.db.close()

    def app(self) -> Starlette:
        return build_app(
            ControlDeps(
                db=self.db,
                pepper=self._pepper,
                key_env=self.settings.key_env,
                operator_token=self._operator_token,
                changed=self._changed,
                ship=self._ship,
                metrics_text=self._metrics,
                ready=self._ready,
                probe=self._probe,
                doctor=self._examine,
                reconcile=self._reconcile,
                explain=self.explanations.explain,
                credited=self.purses.credited,
                signer=self._signer,
                stripe_secret=self.settings.stripe_secret,
                provider_name=self.settings.provider_name,
            )
        )

    # -- what the application asks -----------------------------------------------------------

    async def _changed(self) -> None:
        """After a write: this host's data processes are told, then the other hosts. Who wrote hears
        of it when it is in force here.
        """
        await self.feed.poll()
        if self.announcements is not None:
            await self.announcements.announce(self.feed.version)
        await self.feed.held()

    async def _ship(self) -> None:
        """Before usage is read. What cannot be shipped now is shown later."""
        try:
            await self.shipper.ship_once()
        except (SQLAlchemyError, OSError) as error:
            _log.warning("usage is shown without what waits to ship: %s", type(error).__name__)

    async def _insert(self, batch: list[Pair]) -> None:
        inserted = await insert_records(self.db, batch)
        if inserted.quarantined:
            self._quarantined_rows += inserted.quarantined
            _log.error("%d records were put aside: see usage_quarantine", inserted.quarantined)

    async def _quarantined(self) -> int:
        """Records put aside on this host or in the database; the last number while that is away."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._quarantined_rows = await count_quarantined(self.db)
        return self._quarantined_rows + self.shipper.count_unreadable()

    async def _metrics(self) -> bytes:
        lag = self.shipper.lag()
        parked, failing = await self.deliveries.trouble()
        own = {
            "tf_ledger_lag_seconds": lag.oldest_unshipped_s,
            "tf_ledger_unshipped_records": lag.unshipped,
            "tf_ledger_unsettled_records": lag.unsettled,
            "tf_ledger_quarantined_records": await self._quarantined(),
            "tf_sinks_parked_events": parked,
            "tf_sinks_failing": failing,
            "tf_balance_drift_micro": self.purses.drift_micro,
            "tf_balance_corrections_total": self.purses.corrected,
            "tf_data_processes": len(self.link.peers),
        }
        sums = self.totals.sums()
        sums.gauges |= self.reconciler.gauges()
        return render(sums, own)

    def _ready(self) -> Mapping[str, object]:
        return {
            "ready": True,
            "version": __version__,
            "snapshot_version": self.feed.version,
            "data_processes": len(self.link.peers),
        }

    async def _probe(self, url: str, upstream: str) -> Mapping[str, object]:
        endpoint = Endpoint(id=0, pool_id=0, url=url)
        report = await probe_endpoint(
            endpoint, [upstream], fetch, self._environ, self.reconciler.probing
        )
        return report.shown()

    async def _reconcile(self) -> list[Report]:
        if self.prober.running:
            return await self.reconciler.reconcile()
        await self.prober.sweep()  # no server: nobody scrapes
        await asyncio.sleep(2 * QUIET_MS / 1000)
        await self.prober.sweep()
        return await self.reconciler.reconcile(patience_s=0)

    async def _examine(self) -> list[Finding]:
        prober = self.prober
        if not prober.signals():  # no server: nobody has asked the endpoints yet
            prober = self._new_prober(0.0)
            for _ in range(UNHEALTHY_AFTER):
                await prober.sweep()
        return await examine(
            self.feed.snapshot, self.settings, prober.signals, self._reachable_store
        )

    def _new_prober(self, health_every_s: float) -> Prober:
        return Prober(
            lambda: targets_in(self.feed.snapshot),
            fetch,
            self._publish,
            environ=self._environ,
            monotonic=time.monotonic,
            chance=random.random,
            health_every_s=health_every_s,
            scraped=self.reconciler.scraped,
            probing=self.reconciler.probing,
        )

    def _publish(self, signals: Signals) -> None:
        self.link.broadcast("signals", msgspec.msgpack.encode(signals))


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


async def _levels(
    connection: AsyncConnection, tenant_ids: Collection[int]
) -> dict[int, tuple[int, tuple[str, ...]]]:
    return await levels_micro(connection, tenant_ids, time.time_ns() // 1_000_000)
