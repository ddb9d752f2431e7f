"""The SQL database of a gateway: SQLite in the data folder, or PostgreSQL by URL.

One writer a host, the control process. Not here: tables (``schema``), what is in them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, insert, inspect, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.store import schema
from gateway.store.migrations import HEAD
from gateway.store.postgres import driver_url

MIGRATIONS = Path(__file__).parent / "migrations"
#: As alembic makes it.
VERSION_TABLE = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
#: PostgreSQL: one migrator at a time; any constant of our own will do.
MIGRATION_LOCK = 0x746F6B66


class PepperMismatch(Exception):
    """The database's keys were made with another pepper: none of them could ever match."""


class Database:
    """``begin`` is a transaction; SQLite's writers queue at its start, not in its middle."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(tf_write=True)
        self.is_sqlite = engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    async def migrate(self) -> None:
        """Bring the schema to ``HEAD``. Quick when it is there, or nothing is: alembic, which takes
        longer than all else of a first start, is not even imported.
        """
        if await self._revision() == HEAD:
            return
        async with self._writer.begin() as connection:
            if not self.is_sqlite:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
                )
            await connection.run_sync(_make_or_upgrade)

    async def check_pepper(self, fingerprint: str) -> None:
        """Remember the pepper's fingerprint at first, compare ever after."""
        async with self.begin() as connection:
            known = await connection.scalar(
                select(schema.meta.c.value).where(schema.meta.c.name == "pepper")
            )
            if known is None:
                await connection.execute(
                    insert(schema.meta).values(name="pepper", value=fingerprint)
                )
            elif known != fingerprint:
                raise PepperMismatch(
                    "the pepper differs from the one this database's keys were made with; "
                    "set TF_PEPPER to that one, or restore the data folder's pepper file"
                )

    async def close(self) -> None:
        await self.engine.dispose()

    async def _revision(self) -> str | None:
        try:
            async with self.engine.connect() as connection:
                found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
                return None if found is None else str(found)
        except DatabaseError:
            return None  # no such table: a new database


def open_database(url: str | None, data_dir: Path | str) -> Database:
    """No connection is made yet. Raises ``ValueError`` for a URL of another kind, or with a word in
    it that is not known.
    """
    if url is None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(data_dir) / 'gateway.db'}")
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return Database(engine)
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        raise ValueError(f"database_url: expected postgresql://..., got {scheme}://...")
    made, arguments = driver_url(url)
    return Database(
        create_async_engine(made, connect_args=arguments, pool_size=5, pool_pre_ping=True)
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Per connection: WAL, foreign keys, patience; we say BEGIN ourselves."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=5000", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("tf_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_or_upgrade(connection: Connection) -> None:
    """In one step where there is nothing, which makes the same (the tests compare); else by the
    revisions that are missing.
    """
    if inspect(connection).get_table_names():
        upgrade(connection)
        return
    schema.metadata.create_all(connection)
    connection.execute(text(VERSION_TABLE))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the revisions that are missing, from the first one on where there is nothing."""
    # Imported here: 0.2 s of start-up, and only a schema that is behind pays it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
