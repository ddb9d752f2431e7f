"""Usage as it is read: with names, oldest first, without gaps, summed."""

from sqlalchemy import select

from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.schema import keys, models, price_versions
from gateway.store.summaries import Asked, summary
from gateway.store.usage import read_records
from quotas.record import AttemptEntry
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import FIELDS, START_MS, record

__all__ = ["database_url", "db", "postgres"]


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


async def test_every_attempt_is_logged_by_the_names_of_its_fields(db: Database) -> None:
    attempts = (
        AttemptEntry(7, "http://a", START_MS, START_MS + 40, 503, 0, 0, 2),
        AttemptEntry(8, "http://b", START_MS + 50, START_MS + 90, 200, 10, 3, 2),
    )
    await insert_records(db, [record(1, attempts=attempts)])
    (shown,), _ = await read_records(db)
    assert shown["attempts"] == 2
    assert shown["attempt_log"] == [
        {
            "endpoint_id": 7, "endpoint": "http://a", "started_ms": START_MS,
            "ended_ms": START_MS + 40, "status": 503, "prompt_tokens": 0, "completion_tokens": 0,
            "choices": 2,
        },
        {
            "endpoint_id": 8, "endpoint": "http://b", "started_ms": START_MS + 50,
            "ended_ms": START_MS + 90, "status": 200, "prompt_tokens": 10, "completion_tokens": 3,
            "choices": 2,
        },
    ]  # fmt: skip
    assert shown["unbilled_ms"] == 0


async def test_engine_time_that_billed_nothing_is_summed_per_key(db: Database) -> None:
    await apply(db, FULL)
    tried = AttemptEntry(7, "http://a", START_MS, START_MS + 40, 500, 0, 0, 1)
    nothing = {"billed": {"input": 0, "output": 0}, "usage": {}, "outcome": "engine_error"}
    await insert_records(
        db,
        [
            record(1, attempts=(tried, tried), **nothing),
            record(2, attempts=(tried,), **nothing),
            record(3, attempts=(tried,)),  # it billed something
        ],
    )
    (summed,) = (await summary(db, Asked(by=("key",)))).data
    assert (summed["requests"], summed["unbilled_ms"]) == (3, 120)
