"""Opening and migrating, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from gateway.store import schema
from gateway.store.database import (
    MIGRATIONS,
    Database,
    PepperMismatch,
    open_database,
    upgrade,
)
from gateway.store.migrations import HEAD
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


def shape(connection: Connection) -> dict[str, Any]:
    """Everything a database says of its tables, in an order of ours.

    Indexes and constraints in its own words, so that the condition of a partial index counts too.
    """
    found: dict[str, Any] = {}
    inspector = inspect(connection)
    for table in set(inspector.get_table_names()) - {"alembic_version"}:
        unique = [tuple(each["column_names"]) for each in inspector.get_unique_constraints(table)]
        found[table] = {
            "columns": sorted(
                (each["name"], str(each["type"]), each["nullable"], str(each["default"]))
                for each in inspector.get_columns(table)
            ),
            "primary key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(unique),
            "foreign keys": sorted(
                (each["constrained_columns"], each["referred_table"], each["referred_columns"])
                for each in inspector.get_foreign_keys(table)
            ),
            "indexes": indexes(connection, table),
            "without rowid": connection.dialect.name == "sqlite"
            and "WITHOUT ROWID" in (connection.scalar(_TABLE_SQL, {"name": table}) or ""),
            "ids are never reused": connection.dialect.name != "sqlite"
            or "AUTOINCREMENT" in (connection.scalar(_TABLE_SQL, {"name": table}) or ""),
        }
    return found


_TABLE_SQL = text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name")
_INDEXES = {
    "sqlite": text(
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :name AND sql NOT NULL"
    ),
    "postgresql": text(
        "SELECT indexdef FROM pg_indexes WHERE tablename = :name AND schemaname = 'public'"
    ),
}


def indexes(connection: Connection, table: str) -> list[str]:
    return sorted(connection.scalars(_INDEXES[connection.dialect.name], {"name": table}))


@pytest.fixture
async def made(
    request: pytest.FixtureRequest, database_url: str | None, tmp_path: Path
) -> AsyncIterator[tuple[Database, Database]]:
    """Two new databases of a kind: one made at once, one by every revision since the first."""
    found = []
    for name in ("at once", "by revisions"):
        (tmp_path / name).mkdir()
        url = database_url and request.getfixturevalue("postgres").new_url()
        found.append(open_database(url, tmp_path / name))
    at_once, by_revisions = found
    await at_once.migrate()
    async with by_revisions.begin() as connection:
        await connection.run_sync(upgrade)
    yield at_once, by_revisions
    await at_once.close()
    await by_revisions.close()


async def test_revisions_make_what_is_made_at_once(made: tuple[Database, Database]) -> None:
    shapes = []
    for database in made:
        async with database.read() as connection:
            shapes.append(await connection.run_sync(shape))
            assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD
    assert shapes[0] == shapes[1]
    assert "usage_records" in shapes[0]


async def test_a_database_that_is_behind_gets_the_revisions_it_lacks(
    made: tuple[Database, Database], database_url: str | None, tmp_path: Path, request: Any
) -> None:
    url = database_url and request.getfixturevalue("postgres").new_url()
    behind = open_database(url, tmp_path)
    async with behind.begin() as connection:
        await connection.run_sync(partial(upgrade, to="0003"))
        assert await connection.run_sync(shape) != {}
    await behind.migrate()
    async with behind.read() as connection, made[0].read() as wanted:
        assert await connection.run_sync(shape) == await wanted.run_sync(shape)
    await behind.close()


def test_revisions_form_one_line_that_ends_in_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert scripts.get_bases() == ["0001"]


def test_no_revision_reads_the_schema_of_today() -> None:
    """A revision that did would make another database with each release."""
    for path in sorted((MIGRATIONS / "versions").glob("*.py")):
        assert "gateway.store.schema" not in path.read_text().split('"""')[-1], path.name


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
