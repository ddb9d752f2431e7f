"""A database of the first release, with rows in every table, after every revision since.

A migration that loses or bends what was there passes on an empty database; here each old row must be
read again as it was written, and the release of today must work on it.
"""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert, inspect, select, text

from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.database import MIGRATIONS, Database, open_database
from gateway.store.ledger import Inserted, insert_records
from gateway.store.limits import LimitName, LimitValue, read_limits, set_limits
from gateway.store.migrations.versions.r0001_first import first
from gateway.store.schema import usage_records
from gateway.store.summaries import Asked, summary
from gateway.store.usage import read_records
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["postgres"]

PAYLOAD, RECORD = record(1)
#: Table -> rows, in an order that foreign keys allow. Ids have gaps, as those of a long life do.
ROWS: dict[str, list[dict[str, Any]]] = {
    "meta": [{"name": "kept", "value": "yes"}],
    "tenants": [
        {"id": 1, "name": "acme", "deleted_at": None},
        {"id": 4, "name": "gone", "deleted_at": 1_700_000_000_000},
    ],
    "projects": [{"id": 1, "tenant_id": 1, "name": "bot", "deleted_at": None}],
    "keys": [
        {
            "id": 1, "project_id": 1, "name": "ci", "models": '["llama"]',
            "expires_s": 4_000_000_000, "created_ms": 5, "revoked_ms": None, "deleted_at": None,
        },
        {
            "id": 3, "project_id": 1, "name": "old", "models": None,
            "expires_s": None, "created_ms": 6, "revoked_ms": 7, "deleted_at": None,
        },
    ],
    "key_secrets": [
        {
            "kid": "abc", "key_id": 1, "digest": b"\x00\xff" * 16, "last4": "wxyz",
            "created_ms": 5, "expires_s": None,
        },
    ],
    "limits": [
        {"id": 2, "scope_kind": "tenant", "scope_id": 1, "dimension": "requests",
         "value": 600, "burst": 50, "version": 1},
        {"id": 3, "scope_kind": "project", "scope_id": 1, "dimension": "tokens",
         "value": 100_000, "burst": None, "version": 2},
        {"id": 9, "scope_kind": "key", "scope_id": 1, "dimension": "concurrency",
         "value": 32, "burst": None, "version": 3},
    ],
    "pools": [{"id": 1, "name": "pool", "deleted_at": None}],
    "endpoints": [
        {"id": 1, "pool_id": 1, "url": "http://10.0.0.5:8000", "deleted_at": None,
         "options": '{"max_in_flight": 8}'},
    ],
    "models": [
        {"id": 1, "name": "llama", "upstream": "meta/llama", "pool_id": 1,
         "context_tokens": 131_072, "max_output_tokens": None, "timeouts": '{"gap_s": 60}',
         "created_ms": 5, "deleted_at": None},
    ],
    "price_versions": [
        {"id": 1, "model_id": 1, "version": 1, "currency": "USD", "effective_from_ms": 5},
    ],
    "prices": [
        {"price_version_id": 1, "meter": meter, "unit": "million_tokens", "nano": nano}
        for meter, nano in (("input", 10**8), ("cached_input", 5 * 10**7), ("output", 4 * 10**8))
    ],
    "usage_records": [
        {
            "id": 7, "request_id": RECORD.request_id, "payload_hash": hashlib.sha256(PAYLOAD).digest()[:16], "payload": PAYLOAD,
            "tenant_id": 1, "project_id": 1, "key_id": 1, "model_id": 1, "price_id": 1,
            "endpoint": "http://10.0.0.5:8000", "attempts": 1, "choices": 1, "prompt_tokens": 10,
            "cached_tokens": 4, "completion_tokens": 3, "reasoning_tokens": 0,
            "source": "engine_final", "outcome": "ok", "status": 200, "ttft_ms": 5, "total_ms": 9,
            "started_ms": START_MS + 1, "cost_nano": 2_000, "currency": "USD",
        },
    ],
    "usage_quarantine": [
        {"id": 1, "request_id": "q", "payload_hash": b"\x02", "payload": b"\xc0", "seen_ms": 8},
    ],
    "changes": [
        {"version": 1, "kind": "tenant", "row_id": 1},
        {"version": 4, "kind": "key", "row_id": 1},
    ],
}  # fmt: skip


def _first_release(connection: Connection) -> None:
    """What alembic makes of the first revision, and its rows."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")
    for name, rows in ROWS.items():
        connection.execute(insert(first.tables[name]), rows)
        table = first.tables[name]
        if connection.dialect.name == "postgresql" and "id" in table.c:
            # As if the rows had got their ids from the sequence.
            last = max(row["id"] for row in rows)
            sequence = text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)")
            connection.execute(sequence, {"name": name, "last": last})


@pytest.fixture(params=["sqlite", "postgresql"])
async def upgraded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_url()
    database = open_database(url, tmp_path)
    async with database.begin() as connection:
        await connection.run_sync(_first_release)
    await database.migrate()
    yield database
    await database.close()


def test_every_table_of_the_first_release_has_rows() -> None:
    assert set(ROWS) == set(first.tables)
    assert all(ROWS.values())


async def test_every_row_is_as_it_was_written(upgraded: Database) -> None:
    async with upgraded.read() as connection:
        tables = await connection.run_sync(lambda it: set(inspect(it).get_table_names()))
        for name, rows in ROWS.items():
            columns = [column for column in first.tables[name].c if column.name in rows[0]]
            if name == "limits":  # made anew, in their order
                columns = [column for column in columns if column.name != "id"]
            found = (await connection.execute(select(*columns))).mappings()
            wanted = [{column.name: row[column.name] for column in columns} for row in rows]
            assert sorted(map(dict, found), key=repr) == sorted(wanted, key=repr), name
    assert not {name for name in tables if name.endswith(("_before", "_after"))}


async def test_limits_bind_as_they_did_and_can_be_changed(upgraded: Database) -> None:
    snapshot = Snapshot()
    snapshot.apply(*await Loader(upgraded, lambda: 2**62).full())
    principal = snapshot.principal(1)
    assert principal is not None
    bound = {
        (limit.scope, limit.dimension): (limit.algorithm, limit.capacity, limit.per_minute)
        for limit in principal.limits
    }
    assert bound == {
        ("t1", "requests"): ("bucket", 50, 600),
        ("p1", "tokens"): ("bucket", 100_000, 100_000),
        ("k1", "concurrency"): ("concurrency", 32, 0),
    }
    name = LimitName("requests", "day", 0, "")
    async with upgraded.begin() as connection:
        assert await set_limits(connection, "key", 1, {name: LimitValue(500)}, keep=True)
        kept = {each.dimension for each, _, _ in await read_limits(connection, "key", 1)}
    assert kept == {"concurrency", "requests"}


async def test_keys_work_as_they_did(upgraded: Database) -> None:
    snapshot = Snapshot()
    snapshot.apply(*await Loader(upgraded, lambda: 2**62).full())
    (secret,) = snapshot.keys[1].secrets
    assert (secret.kid, secret.digest) == ("abc", b"\x00\xff" * 16)
    assert snapshot.keys[1].models == ("llama",)
    assert 3 not in snapshot.keys or not snapshot.keys[3].secrets
    (model,) = snapshot.models.values()
    assert model.price is not None
    assert model.price.nano["output"] == 4 * 10**8


async def test_records_are_read_and_summed_and_new_ones_follow(upgraded: Database) -> None:
    (shown,), _ = await read_records(upgraded)
    assert (shown["request_id"], shown["key"], shown["model"]) == (RECORD.request_id, "ci", "llama")
    assert shown["attempt_log"] == []
    assert await insert_records(upgraded, [record(1)]) == Inserted(0, 1, 0)  # known already
    assert await insert_records(upgraded, [record(2)]) == Inserted(1, 0, 0)

    (whole,) = (await summary(upgraded, Asked(by=()))).data

    assert (whole["requests"], whole["prompt_tokens"]) == (2, 20)
    async with upgraded.read() as connection:
        ids = (await connection.scalars(select(usage_records.c.id))).all()
    assert min(ids) == 7
    assert len([each for each in ids if each > 7]) == 1
