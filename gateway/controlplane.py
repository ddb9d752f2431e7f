"""The composition root of the control process: the only writer of SQL, off every request's path.

Run by the supervisor as ``python -m gateway.controlplane LEASH_FD``. It opens the database, feeds
the data processes, ships their journals, probes engines and serves the admin API; when it is away,
inference goes on. ``offline`` is the same without processes, for a command that finds no live
server. Not here: what any part does.
"""

import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from gateway import identity
from gateway.control.feed import Feed
from gateway.link.server import LinkServer
from gateway.loader import Loader
from gateway.metering.inquest import context_from
from gateway.metering.shipper import Shipper
from gateway.settings import Settings
from gateway.store.database import Database, PepperMismatch, open_database
from gateway.store.ledger import insert_records, known_ids
from quotas.ports import QuotaStore

SHIP_S = 0.25
#: What is left to ship when the host stops gets this long.
LAST_SHIPPING_S = 5.0
OWNER = "control"
log = logging.getLogger("gateway.controlplane")


class ControlFailed(Exception):
    """Control cannot start; the message says what to change."""


class Core:
    """What the live process and an offline command share: database, feed, shipper, application."""

    def __init__(
        self, settings: Settings, pepper: str, operator_token: str, store: QuotaStore | None
    ) -> None:
        self.settings = settings
        self.store = store
        self.data_dir = Path(settings.data_dir)
        try:
            self.db: Database = open_database(settings.database_url, self.data_dir)
        except ValueError as error:
            raise ControlFailed(f"{error}; see TF_DATABASE_URL") from None
        self.link = LinkServer({})
        self.feed = Feed(Loader(self.db), self.link, self.data_dir / "snapshot")
        self.shipper = Shipper(
            self.data_dir,
            lambda batch: insert_records(self.db, batch),
            store,
            context_from(self.feed.snapshot),
            known=lambda ids: known_ids(self.db, ids),
        )
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

    async def close(self) -> None:
        await self.shipper.close()
        await self.link.close()
        if self.store is not None:
            await self.store.close()
        await self.db.close()
