"""Hosts that live are asked what they have open, and each answers its own question."""

from sqlalchemy import update

from gateway.store import open_requests
from gateway.store.database import Database
from gateway.store.schema import open_requests as rows
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


async def test_a_host_answers_what_another_one_asked(db: Database) -> None:
    assert await open_requests.note(db, "one") == 0
    assert await open_requests.note(db, "two") == 0
    asked = await open_requests.ask(db, "one")
    assert asked == {"two": 1}
    assert await open_requests.told(db, asked) == {}

    assert await open_requests.note(db, "one") == 0, "who asks is not asked"
    assert await open_requests.note(db, "two") == 1
    await open_requests.tell(db, "two", 1, '["open"]')
    assert await open_requests.note(db, "two") == 0
    assert await open_requests.told(db, asked) == {"two": '["open"]'}


async def test_an_older_answer_is_none_to_a_later_question(db: Database) -> None:
    await open_requests.note(db, "two")
    first, second = await open_requests.ask(db, "one"), await open_requests.ask(db, "three")
    assert (first, second) == ({"two": 1}, {"two": 2})
    await open_requests.tell(db, "two", 1, "[]")
    assert await open_requests.told(db, first) == {"two": "[]"}
    assert await open_requests.told(db, second) == {}
    assert await open_requests.note(db, "two") == 2


async def test_a_host_is_alone_while_no_other_was_seen_for_a_day(db: Database) -> None:
    await open_requests.note(db, "one")
    assert await open_requests.is_alone(db, "one")
    await open_requests.note(db, "two")
    assert not await open_requests.is_alone(db, "one")
    async with db.begin() as connection:
        await connection.execute(
            update(rows).values(seen_ms=rows.c.seen_ms - open_requests.FORGOTTEN_MS)
        )
    assert await open_requests.is_alone(db, "one")


async def test_a_host_that_was_not_seen_lately_is_not_asked_and_forgotten_in_time(
    db: Database,
) -> None:
    async def seen_ago(ms: int) -> None:
        async with db.begin() as connection:
            await connection.execute(update(rows).values(seen_ms=rows.c.seen_ms - ms))

    await open_requests.note(db, "gone")
    await seen_ago(open_requests.ALIVE_MS)
    assert await open_requests.ask(db, "one") == {}
    assert await open_requests.note(db, "gone") == 0, "it is back"
    await seen_ago(open_requests.FORGOTTEN_MS)
    await open_requests.ask(db, "one")
    await open_requests.note(db, "gone")
    assert await open_requests.ask(db, "one") == {"gone": 1}
