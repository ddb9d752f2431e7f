"""Opening and migrating, on both databases."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from gateway.store import schema
from gateway.store.database import Database, PepperMismatch, open_database
from gateway.store.migrations import HEAD
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


async def test_migrations_make_every_table_of_the_schema(db: Database) -> None:
    async with db.read() as connection:
        found = await connection.run_sync(lambda c: set(inspect(c).get_table_names()))
        assert set(schema.metadata.tables) <= found
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD


async def test_migrating_again_changes_nothing(db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(schema.meta.insert().values(name="kept", value="yes"))
    await db.migrate()
    async with db.read() as connection:
        query = select(schema.meta.c.value).where(schema.meta.c.name == "kept")
        assert await connection.scalar(query) == "yes"


async def test_an_exception_rolls_a_transaction_back(db: Database) -> None:
    async def fail() -> None:
        async with db.begin() as connection:
            await connection.execute(schema.meta.insert().values(name="lost", value="yes"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with db.read() as connection:
        assert (await connection.execute(select(schema.meta))).all() == []


async def test_writers_at_once_lose_no_write(db: Database) -> None:
    async def write(number: int) -> None:
        async with db.begin() as connection:
            await connection.execute(schema.meta.insert().values(name=f"n{number}", value="x"))

    await asyncio.gather(*(write(number) for number in range(20)))
    async with db.read() as connection:
        assert len((await connection.execute(select(schema.meta))).all()) == 20


async def test_another_pepper_is_refused_and_the_same_is_not(db: Database) -> None:
    await db.check_pepper("one")
    await db.check_pepper("one")
    with pytest.raises(PepperMismatch, match="TF_PEPPER"):
        await db.check_pepper("two")


async def test_ids_are_never_given_twice(db: Database) -> None:
    async with db.begin() as connection:
        values = {"name": "a"}
        first = (
            await connection.execute(schema.tenants.insert().values(values))
        ).inserted_primary_key
        await connection.execute(schema.tenants.delete())
        second = (
            await connection.execute(schema.tenants.insert().values(values))
        ).inserted_primary_key
    assert first is not None
    assert second is not None
    assert second[0] > first[0]


async def test_names_are_unique_among_the_living_alone(db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(schema.tenants.insert().values(name="a", deleted_at=1))
        await connection.execute(schema.tenants.insert().values(name="a"))
    with pytest.raises(SQLAlchemyError):
        async with db.begin() as connection:
            await connection.execute(schema.tenants.insert().values(name="a"))


async def test_sqlite_keeps_its_promises_to_disk_and_to_foreign_keys(tmp_path: Path) -> None:
    database = open_database(None, tmp_path)
    async with database.read() as connection:
        said = [await connection.scalar(text(f"PRAGMA {name}")) for name in
                ("journal_mode", "foreign_keys", "synchronous")]  # fmt: skip
    await database.close()
    assert said == ["wal", 1, 2]


@pytest.mark.parametrize("url", ["mysql://root:hunter2@host/db", "gibberish"])
def test_a_url_of_another_kind_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="postgresql") as refused:
        open_database(url, tmp_path)
    assert "hunter2" not in str(refused.value)
