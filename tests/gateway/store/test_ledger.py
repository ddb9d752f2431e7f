"""Usage records enter once for ever, priced once; what cannot is put aside and holds up nobody."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from gateway.store import ledger
from gateway.store.database import Database, open_database
from gateway.store.ledger import count_quarantined, insert_records, known_ids
from gateway.store.schema import usage_quarantine, usage_records
from gateway.store.summaries import Asked, summary
from gateway.store.usage import read_records
from quotas.record import AttemptEntry
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]


async def test_a_record_enters_once_and_another_payload_is_quarantined(db: Database) -> None:
    first, second = record(1), record(2)
    assert await insert_records(db, [first, second]) == ledger.Inserted(2, 0, 0)
    odd = record(1, status=500)
    again = await insert_records(db, [first, odd, record(3), record(3)])
    assert again == ledger.Inserted(1, 2, 1)
    assert await insert_records(db, [odd]) == ledger.Inserted(0, 0, 1)
    async with db.read() as connection:
        kept = (await connection.execute(select(usage_records.c.status))).scalars().all()
        aside = (await connection.execute(select(usage_quarantine.c.payload))).scalars().all()
    assert kept == [200, 200, 200]
    assert [bytes(each) for each in aside] == [odd[0]]


async def test_known_ids_are_those_of_the_ledger(db: Database) -> None:
    await insert_records(db, [record(1)])
    asked = [f"{number:032x}" for number in (1, 2)]
    assert await known_ids(db, asked) == {asked[0]}
    assert await known_ids(db, []) == set()


async def test_cost_is_computed_once_and_a_new_price_changes_no_history(db: Database) -> None:
    await apply(db, FULL)
    million = {
        "prompt_tokens": 2_000_000,
        "cached_tokens": 1_000_000,
        "completion_tokens": 1_000_000,
    }
    await insert_records(db, [record(1, usage=million)])
    dearer = msgspec.to_builtins(FULL)
    dearer["models"][0]["price"] = {"currency": "USD", "input": "9", "output": "9"}
    await apply(db, dearer)
    (summed,) = (await summary(db, Asked(by=("model",)))).data
    assert (summed["model"], summed["cost"], summed["currency"]) == ("llama", "0.55", "USD")


async def test_5000_records_a_second_are_no_effort(db: Database) -> None:
    batches = [[record(n) for n in range(s, s + 1_000)] for s in range(0, 5_000, 1_000)]
    began_s = time.perf_counter()
    for batch in batches:
        await insert_records(db, batch)
    took_s = time.perf_counter() - began_s
    # Loose: a shared machine. Alone it takes a tenth.
    assert took_s < 4.0
    print(f"5,000 records in {took_s:.2f} s")


#: Values that no ledger holds, or that would break whoever reads it.
FLAWS = {
    "an integer beyond 63 bits": {"usage": {"prompt_tokens": 1 << 63}},
    "a count below zero": {"usage": {"completion_tokens": -1}},
    "a cost beyond all sums": {"usage": {"prompt_tokens": 1 << 40, "completion_tokens": 1 << 40}},
    "an id that is no text of ours": {"request_id": "a\x00b"},
    "half a character": {"request_id": "\ud800"},
    "a key id beyond 63 bits": {"key_id": 1 << 63},
    "a day after the last": {"started_ms": 1 << 62},
    "an attempt of no time": {"attempts": (AttemptEntry(1, "http://a", -5, 0, 0, 0, 0, 1),)},
    "an endpoint with a zero byte": {"attempts": (AttemptEntry(1, "a\x00", 0, 0, 0, 0, 0, 1),)},
    "an embedded line end": {"attempts": (AttemptEntry(1, "a\n", 0, 0, 0, 0, 0, 1),)},
}


async def test_what_no_ledger_can_hold_is_put_aside_and_holds_up_nobody(db: Database) -> None:
    await apply(db, DEAR)
    odd = [
        (flaw.encode(), msgspec.structs.replace(record(number)[1], **fields))
        for number, (flaw, fields) in enumerate(FLAWS.items(), 10)
    ]
    batch = [record(1), *odd, record(3)]
    assert await insert_records(db, batch) == ledger.Inserted(2, 0, len(odd))
    assert await insert_records(db, batch) == ledger.Inserted(0, 2, len(odd))
    assert await count_quarantined(db) == len(odd)
    aside = await quarantine(db)
    assert {bytes(each["payload"]) for each in aside} == {flaw.encode() for flaw in FLAWS}
    assert all(each["reason"] for each in aside)
    await read_records(db)
    await summary(db, Asked(by=("day",)))


#: A price at which 2^41 tokens cost more than the ledger believes.
DEAR = {
    "pools": [{"name": "p", "endpoints": [{"url": "http://10.0.0.5:8000"}]}],
    "models": [
        {
            "name": "m",
            "pool": "p",
            "price": {"currency": "USD", "input": "999999999", "output": "999999999"},
        }
    ],
}


async def quarantine(db: Database) -> list[dict[str, Any]]:
    async with db.read() as connection:
        return [
            dict(row) for row in (await connection.execute(select(usage_quarantine))).mappings()
        ]


async def test_what_only_the_database_finds_wrong_is_put_aside_too(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "flaw_of", lambda _: "")
    flaws: list[dict[str, Any]] = [
        {"total_ms": 1 << 63},
        {"tenant_id": 1 << 64},
        {"source": "\ud800"},
        {"outcome": "a\x00b"},
    ]
    odd = [
        (b"%d" % number, msgspec.structs.replace(record(number)[1], **fields))
        for number, fields in enumerate(flaws, 10)
    ]
    refused = len(odd) - db.is_sqlite  # it holds a zero byte in a text
    found = await insert_records(db, [record(1), *odd, record(3)])
    assert (found.quarantined, found.duplicate) == (refused, 0)
    async with db.read() as connection:
        names = set(await connection.scalars(select(usage_records.c.request_id)))
    assert {record(1)[1].request_id, record(3)[1].request_id} <= names
    assert len(names) == 2 + len(odd) - refused


async def test_a_database_that_is_away_is_no_flaw_of_a_record(tmp_path: Path) -> None:
    closed = open_database(None, tmp_path)  # never migrated: there is no table
    with pytest.raises(SQLAlchemyError):
        await insert_records(closed, [record(1)])
    await closed.close()
    nowhere = open_database("postgresql://u@127.0.0.1:1/nothing", tmp_path)
    with pytest.raises((SQLAlchemyError, OSError)):
        await insert_records(nowhere, [record(1)])
    await nowhere.close()


async def test_two_hosts_that_ship_the_same_records_enter_each_once(db: Database) -> None:
    batch = [record(number) for number in range(200)]
    found = await asyncio.gather(*(insert_records(db, batch) for _ in range(4)))
    assert sum(each.new for each in found) == 200
    assert sum(each.duplicate for each in found) == 600
    assert await count_quarantined(db) == 0
