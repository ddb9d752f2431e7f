"""Limits as rows: versions, and changes that touch nothing else."""

from gateway.store.database import Database
from gateway.store.limits import LimitName, LimitValue, drop_limit, read_limits, set_limits
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]

MINUTE = LimitName("tokens", "minute")
DAY = LimitName("tokens", "day")
OF_MODEL = LimitName("tokens", "minute", model_id=7)
OF_USERS = LimitName("tokens", "minute", each="user")


async def put(db: Database, wanted: dict[LimitName, LimitValue], *, keep: bool = False) -> bool:
    async with db.begin() as connection:
        return await set_limits(connection, "key", 3, wanted, keep=keep)


async def found(db: Database) -> dict[LimitName, tuple[LimitValue, int]]:
    async with db.read() as connection:
        rows = await read_limits(connection, "key", 3)
    return {name: (value, version) for name, value, version in rows}


async def test_one_scope_has_a_limit_a_name(db: Database) -> None:
    wanted = {name: LimitValue(at) for at, name in enumerate((MINUTE, DAY, OF_MODEL, OF_USERS), 1)}
    assert await put(db, wanted)
    assert await found(db) == {name: (value, 1) for name, value in wanted.items()}
    async with db.read() as connection:
        assert await read_limits(connection, "key", 4) == []


async def test_a_change_is_a_version_and_the_same_again_is_none(db: Database) -> None:
    await put(db, {MINUTE: LimitValue(5), DAY: LimitValue(9)})
    full = LimitValue(6, 7, 250, shadow=True, outage="local_share")
    assert await put(db, {MINUTE: full, DAY: LimitValue(9)})
    assert not await put(db, {MINUTE: full, DAY: LimitValue(9)})
    assert await found(db) == {MINUTE: (full, 2), DAY: (LimitValue(9), 1)}


async def test_what_is_not_wanted_goes_unless_kept(db: Database) -> None:
    await put(db, {MINUTE: LimitValue(5), OF_USERS: LimitValue(9)})
    assert await put(db, {DAY: LimitValue(1)}, keep=True)
    assert set(await found(db)) == {MINUTE, OF_USERS, DAY}
    assert await put(db, {DAY: LimitValue(1)})
    assert set(await found(db)) == {DAY}


async def test_a_dropped_limit_is_gone_once(db: Database) -> None:
    await put(db, {MINUTE: LimitValue(5), OF_MODEL: LimitValue(5)})
    async with db.begin() as connection:
        assert await drop_limit(connection, "key", 3, OF_MODEL)
        assert not await drop_limit(connection, "key", 3, OF_MODEL)
    assert set(await found(db)) == {MINUTE}
