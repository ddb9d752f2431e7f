"""The change log: versions in order, and how far back it reaches."""

import asyncio

import pytest

from gateway.store import changes
from gateway.store.database import Database
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


async def bump(db: Database, *rows: tuple[str, int]) -> int:
    async with db.begin() as connection:
        return await changes.bump(connection, rows)


async def since(db: Database, version: int) -> tuple[int, set[tuple[str, int]]] | None:
    async with db.read() as connection:
        found = await changes.changed_since(connection, version)
    return None if found is None else (found[0], set(found[1]))


async def test_each_bump_is_one_version_and_is_read_back_from_any(db: Database) -> None:
    assert await bump(db, ("key", 1), ("key", 1), ("tenant", 2)) == 1
    assert await bump(db, ("pool", 3)) == 2
    assert await since(db, 2) == (2, set())
    assert await since(db, 1) == (2, {("pool", 3)})
    assert await since(db, 0) == (2, {("key", 1), ("tenant", 2), ("pool", 3)})


async def test_a_version_never_reached_needs_a_full_load(db: Database) -> None:
    assert await since(db, 0) == (0, set())
    assert await since(db, 7) is None


async def test_bumps_at_once_take_different_versions(db: Database) -> None:
    await bump(db, ("key", 0))
    versions = await asyncio.gather(*(bump(db, ("key", n)) for n in range(1, 11)))
    assert sorted(versions) == list(range(2, 12))


async def test_a_log_cut_short_needs_a_full_load(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "KEPT_VERSIONS", 3)
    for number in range(6):
        await bump(db, ("key", number))
    assert await since(db, 1) is None
    assert await since(db, 4) == (6, {("key", 4), ("key", 5)})
