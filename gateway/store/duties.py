"""Duties: what one host of those that share a database does, for as long as it says so in time.

Times are the database's own where it has a clock that hosts share (PostgreSQL); a SQLite file has one
host. Who holds a duty may take it again, so a process that was restarted under the same name goes on
at once. Not here: what is done under one.
"""

import time

from sqlalchemy import BigInteger, ColumnElement, cast, extract, func, literal, or_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.schema import duties


async def hold(db: Database, name: str, owner: str, ttl_ms: int) -> bool:
    """Take or keep a duty for ``ttl_ms`` from now; False where another one holds it."""
    async with db.begin() as connection:
        at_ms = now_ms(connection)
        dialect = sqlite if db.is_sqlite else postgresql
        statement = dialect.insert(duties).values(
            name=name, owner=owner, until_ms=at_ms + literal(ttl_ms, BigInteger)
        )
        taken = await connection.execute(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"owner": statement.excluded.owner, "until_ms": statement.excluded.until_ms},
                where=or_(duties.c.owner == owner, duties.c.until_ms < at_ms),
            ).returning(duties.c.owner)
        )
        return taken.first() is not None


async def release(db: Database, owner: str) -> None:
    """Let go of everything that is held under this name."""
    async with db.begin() as connection:
        await connection.execute(update(duties).where(duties.c.owner == owner).values(until_ms=0))


def now_ms(connection: AsyncConnection) -> ColumnElement[int]:
    """The time that hosts share, as an expression."""
    if connection.dialect.name == "sqlite":
        return literal(time.time_ns() // 1_000_000, BigInteger)
    return cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)
