"""A duty is one owner's until it ends, and the same owner's again at any time."""

import asyncio

from gateway.store import duties
from gateway.store.database import Database
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


async def test_one_owner_holds_it_until_it_ends_or_lets_go(db: Database) -> None:
    assert await duties.hold(db, "work", "one", 60_000)
    assert await duties.hold(db, "work", "one", 60_000), "kept"
    assert not await duties.hold(db, "work", "two", 60_000)
    assert await duties.hold(db, "other", "two", 60_000)

    await duties.release(db, "one")
    assert await duties.hold(db, "work", "two", 1)
    await asyncio.sleep(0.01)
    assert await duties.hold(db, "work", "one", 60_000), "it had ended"


async def test_of_many_who_ask_at_once_one_gets_it(db: Database) -> None:
    asked = [duties.hold(db, "work", f"host-{n}", 60_000) for n in range(5)]
    assert sum(await asyncio.gather(*asked)) == 1
