"""Sums by hour, day and week are the ledger's, whatever comes late, twice, reversed or at a new price."""

from typing import Any

import pytest
from sqlalchemy import select, text, update

from gateway.store import rollups
from gateway.store.corrections import reprice_record, reverse_record
from gateway.store.database import Database
from gateway.store.entries import add_up
from gateway.store.ledger import insert_records
from gateway.store.rollups import (
    DAY_MS,
    HOUR_MS,
    LEVELS,
    SUMMED,
    WEEK_MS,
    Rollups,
    differences,
    rebuild,
)
from gateway.store.schema import model_hours, usage_days, usage_hours
from tests.support.applying import FULL, NOW_MS, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]
PAYG = FULL | {"tenants": [FULL["tenants"][0] | {"contract": {"kind": "payg"}}]}
DEARER = {"currency": "USD", "input": "9", "output": "9"}


async def kept(db: Database, table: Any) -> list[dict[str, Any]]:
    async with db.read() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings()]


async def test_records_of_an_hour_add_up_across_batches_and_days(db: Database) -> None:
    await apply(db, FULL)
    late = record(9, started_ms=START_MS - 40 * DAY_MS)
    await insert_records(db, [record(1), record(2), record(3, started_ms=START_MS + HOUR_MS)])
    await insert_records(db, [record(1), record(4), late, record(5, key_id=2)])

    hours = await kept(db, usage_hours)
    assert {(row["hour"] - START_MS // HOUR_MS, row["key_id"]): row["requests"] for row in hours} == {
        (0, 1): 3, (1, 1): 1, (-960, 1): 1, (0, 2): 1,
    }  # fmt: skip
    assert sum(row["prompt_tokens"] for row in hours) == 60
    days = await kept(db, usage_days)
    assert sorted(row["requests"] for row in days) == [1, 1, 4]
    assert await differences(db) == []


async def test_a_reversal_and_a_new_price_enter_the_hour_of_their_record(db: Database) -> None:
    await apply(db, PAYG)
    dearer = [FULL["models"][0] | {"price": DEARER}]
    await apply(db, PAYG | {"models": dearer}, NOW_MS + 1)
    usage = {"prompt_tokens": 1_000, "completion_tokens": 0}
    await insert_records(db, [record(n, usage=usage) for n in (1, 2, 3)])
    now_ms = START_MS + 60 * DAY_MS
    async with db.begin() as connection:
        await reverse_record(connection, f"{1:032x}", now_ms)
        await reprice_record(connection, f"{2:032x}", 2, now_ms)

    (hour,) = await kept(db, usage_hours)
    assert (hour["requests"], hour["cost_nano"]) == (3, 300_000)
    assert hour["charged_nano"] == 0 + 9_000_000 + 100_000
    assert await differences(db) == []
    assert await rebuild(db) == len(LEVELS)
    assert await kept(db, usage_hours) == [hour]


async def test_a_lost_record_is_found_and_a_rebuild_mends_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(db, PAYG)
    add = Rollups.add
    with monkeypatch.context() as patched:  # the bug: one record in three is forgotten
        patched.setattr(Rollups, "add", lambda self, row: row["status"] != 201 and add(self, row))
        await insert_records(db, [record(1), record(2), record(3, status=201)])
    found = await differences(db)
    assert [(each["ledger"]["requests"], each["kept"]["requests"]) for each in found] == [
        (3, 2)
    ] * len(LEVELS)
    await rebuild(db)
    assert await differences(db) == []


async def test_a_leaked_token_and_a_sum_of_nothing_are_found(db: Database) -> None:
    await insert_records(db, [record(1)])
    async with db.begin() as connection:
        await connection.execute(
            update(usage_hours).values(prompt_tokens=usage_hours.c.prompt_tokens + 1)
        )
        await connection.execute(text("UPDATE usage_days SET day = day + 1"))
    found = await differences(db)
    assert [sorted(each.keys() & {"hour", "day"}) for each in found] == [["hour"], ["day"], ["day"]]
    assert found[0]["kept"]["prompt_tokens"] == found[0]["ledger"]["prompt_tokens"] + 1
    await rebuild(db)
    assert await differences(db) == []


async def test_a_rebuild_in_small_steps_makes_the_same_sums(db: Database) -> None:
    await insert_records(db, [record(n, started_ms=START_MS + n * 17 * HOUR_MS) for n in range(20)])
    before = [await kept(db, level.table) for level in LEVELS]
    assert sum(map(len, before)) > 5 * 20 / 2
    await rebuild(db, at_most_ms=WEEK_MS)
    assert [await kept(db, level.table) for level in LEVELS] == before


async def test_what_is_added_to_one_sum_in_one_call_adds_up(db: Database) -> None:
    group = {"hour": 5, "model_id": 1, "currency": "USD"}
    row = group | dict.fromkeys(SUMMED, 2)
    for _ in range(2):
        async with db.begin() as connection:
            await add_up(connection, model_hours, SUMMED, [row, row, row | {"hour": 6}])
    hours = {each["hour"]: each["requests"] for each in await kept(db, model_hours)}
    assert hours == {5: 8, 6: 4}


async def test_a_rolled_back_batch_leaves_no_sum(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(rollups.Rollups, "write", fail)
    with pytest.raises(RuntimeError):
        await insert_records(db, [record(1)])
    assert await kept(db, usage_hours) == []
