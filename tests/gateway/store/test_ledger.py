"""Usage records: once for ever, priced once, read oldest first, summed."""

import time

import msgspec
from sqlalchemy import select

from gateway.store import ledger
from gateway.store.database import Database
from gateway.store.ledger import insert_records, known_ids, read_records, summary
from gateway.store.schema import keys, models, price_versions, usage_quarantine, usage_records
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import FIELDS, START_MS, record

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


async def test_a_record_is_shown_with_names_and_exactly_its_fields(db: Database) -> None:
    await apply(db, FULL)
    async with db.read() as connection:
        named = {
            "key_id": await connection.scalar(select(keys.c.id).where(keys.c.name == "ci")),
            "model_id": await connection.scalar(select(models.c.id)),
            "price_id": await connection.scalar(select(price_versions.c.id)),
        }
    await insert_records(db, [record(1, **named)])
    (shown,), cursor = await read_records(db)
    assert list(shown) == FIELDS
    assert cursor is None
    assert (shown["tenant"], shown["project"], shown["key"], shown["model"]) == (
        "acme", "bot", "ci", "llama",
    )  # fmt: skip
    assert shown["price_version"] == 1
    assert shown["endpoint"] == "http://10.0.0.5:8000"
    assert shown["started_at"] == "2027-01-15T08:00:00.001Z"


async def test_a_record_of_rows_nobody_knows_is_still_shown(db: Database) -> None:
    await insert_records(db, [record(1, key_id=99, attempts=())])
    (shown,), _ = await read_records(db)
    assert (shown["tenant"], shown["key"], shown["endpoint"]) == (None, None, "")
    assert shown["prompt_tokens"] == 10


async def test_pages_follow_the_cursor_oldest_first_without_gaps(db: Database) -> None:
    await insert_records(db, [record(number) for number in range(25)])
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        page, after = await read_records(db, after_id=after, limit=10)
        seen += [each["request_id"] for each in page]
    assert seen == [f"{number:032x}" for number in range(25)]


async def test_cost_is_computed_once_and_a_new_price_changes_no_history(db: Database) -> None:
    await apply(db, FULL)
    million = {"input": 1_000_000, "cached_input": 1_000_000, "output": 1_000_000}
    await insert_records(db, [record(1, billed=million)])
    dearer = msgspec.to_builtins(FULL)
    dearer["models"][0]["price"] = {"currency": "USD", "input": "9", "output": "9"}
    await apply(db, dearer)
    (summed,) = await summary(db, "model")
    assert (summed["model"], summed["cost"], summed["currency"]) == ("llama", "0.55", "USD")


async def test_sums_per_key_model_and_day(db: Database) -> None:
    await apply(db, FULL)
    day_ms = 86_400_000
    # 08:00 and 23:00 of one day are that day, on a database that rounds too.
    batch = [record(1), record(2, started_ms=START_MS + 15 * day_ms // 24), record(3)]
    batch.append(record(4, started_ms=START_MS + day_ms))
    await insert_records(db, batch)
    (by_key,) = await summary(db, "key")
    assert (by_key["key"], by_key["requests"], by_key["prompt_tokens"]) == ("acme/bot/ci", 4, 40)
    days = await summary(db, "day")
    assert [(each["day"], each["requests"]) for each in days] == [
        ("2027-01-15", 3),
        ("2027-01-16", 1),
    ]
    assert (await summary(db, "day", START_MS + day_ms))[0]["requests"] == 1


async def test_5000_records_a_second_are_no_effort(db: Database) -> None:
    batches = [[record(n) for n in range(s, s + 1_000)] for s in range(0, 5_000, 1_000)]
    began_s = time.perf_counter()
    for batch in batches:
        await insert_records(db, batch)
    took_s = time.perf_counter() - began_s
    # Loose: a shared machine. Alone it takes a tenth.
    assert took_s < 4.0
    print(f"5,000 records in {took_s:.2f} s")
