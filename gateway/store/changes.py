"""The change log: which rows changed at which version, in the order of their commits.

One counter row is updated inside each writing transaction, so a version is visible only with all
before it, on both databases.
"""

from collections.abc import Iterable

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import changes, meta

VERSION = "version"
#: PostgreSQL: writers of two hosts take turns even before there is a row to lock.
BUMP_LOCK = 0x746F6B67
#: Older entries than this many versions are dropped; who is further behind loads in full.
KEPT_VERSIONS = 10_000


async def bump(connection: AsyncConnection, rows: Iterable[tuple[str, int]]) -> int:
    """Log changed rows (kind, id) under a new version, which is returned."""
    if connection.dialect.name != "sqlite":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": BUMP_LOCK})
    now = await current(connection)
    if now == 0:
        await connection.execute(insert(meta).values(name=VERSION, value="1"))
        now = 1
    else:
        now += 1
        await connection.execute(update(meta).where(meta.c.name == VERSION).values(value=str(now)))
    unique = list(dict.fromkeys(rows))
    if unique:
        await connection.execute(
            insert(changes),
            [{"version": now, "kind": kind, "row_id": row_id} for kind, row_id in unique],
        )
    await connection.execute(changes.delete().where(changes.c.version <= now - KEPT_VERSIONS))
    return now


async def current(connection: AsyncConnection) -> int:
    """The version now; 0 before the first change. A writer holds the row from here on."""
    query = select(meta.c.value).where(meta.c.name == VERSION)
    if connection.dialect.name != "sqlite":
        query = query.with_for_update()
    found = await connection.scalar(query)
    return int(found) if found is not None else 0


async def changed_since(
    connection: AsyncConnection, version: int
) -> tuple[int, list[tuple[str, int]]] | None:
    """(now, rows changed after ``version``), or None when the log does not reach back that far."""
    value = await connection.scalar(select(meta.c.value).where(meta.c.name == VERSION))
    now = int(value) if value is not None else 0
    if version > now or (version < now and version <= now - KEPT_VERSIONS):
        return None
    oldest = await connection.scalar(select(func.min(changes.c.version)))
    if version < now and oldest is not None and version + 1 < oldest and version != 0:
        return None
    rows = await connection.execute(
        select(changes.c.kind, changes.c.row_id).where(changes.c.version > version).distinct()
    )
    return now, [(kind, row_id) for kind, row_id in rows]


async def peek(connection: AsyncConnection) -> int:
    """The version now, for a reader; 0 before the first change."""
    value = await connection.scalar(select(meta.c.value).where(meta.c.name == VERSION))
    return int(value) if value is not None else 0
