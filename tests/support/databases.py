"""A migrated database of the test's own: every proof that asks for it runs on both kinds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store.database import Database, open_database

pytest_plugins = ["tests.support.postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("postgres").migrated_url(_migrate)


def _migrate(url: str) -> None:
    async def migrate() -> None:
        database = open_database(url, "")
        await database.migrate()
        await database.close()

    asyncio.run(migrate())


@pytest.fixture
async def db(database_url: str | None, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(database_url, tmp_path)
    await database.migrate()
    yield database
    await database.close()
