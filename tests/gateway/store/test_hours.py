"""GPU hours in the books: each once, to the nano, in its own month, whatever was missed."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from gateway.store.database import Database
from gateway.store.entries import drifts
from gateway.store.hours import book_hours
from gateway.store.margins import by_model
from gateway.store.schema import postings
from quotas.contracts import HOUR_MS
from quotas.money import parse_amount
from tests.gateway.store.test_books import document
from tests.support.applying import apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]
#: Half past eight, on the last day of a month.
START_MS = int(datetime(2027, 1, 31, 8, 30, tzinfo=UTC).timestamp()) * 1_000
THIRD = 333_333_333


def costing(text: str | None) -> dict[str, Any]:
    made = document({"kind": "payg"})
    cost = {} if text is None else {"cost": {"gpu_hour": text, "gpus": 1}}
    made["pools"][0]["endpoints"] = [{"url": "http://10.0.0.5:8000", **cost}]
    return made


async def book(db: Database, at_ms: int) -> int:
    async with db.begin() as connection:
        return await book_hours(connection, at_ms)


async def booked(db: Database) -> dict[int, int]:
    """Month -> nano on operator_cost."""
    async with db.read() as connection:
        rows = await connection.execute(
            select(postings.c.month, func.sum(postings.c.nano))
            .where(postings.c.account == "operator_cost")
            .group_by(postings.c.month)
        )
        assert await drifts(connection) == []
        return {month: int(nano) for month, nano in rows}


async def test_an_hour_is_booked_when_it_is_over_and_once(db: Database) -> None:
    await apply(db, costing("2"), START_MS)

    assert await book(db, START_MS + HOUR_MS // 4) == 0
    assert await book(db, START_MS + HOUR_MS // 2) == 1
    assert await booked(db) == {202701: 10**9}
    assert [await book(db, START_MS + HOUR_MS) for _ in range(3)] == [0, 0, 0]
    assert await book(db, START_MS + HOUR_MS + HOUR_MS // 2) == 1
    assert await booked(db) == {202701: 3 * 10**9}


async def test_hours_that_were_missed_go_to_their_own_months_to_the_nano(db: Database) -> None:
    await apply(db, costing("0.333333333"), START_MS)
    for minutes in (31, 95, 60 * 16, 60 * 24 * 3):
        await book(db, START_MS + minutes * 60_000)

    january = 15 * THIRD + THIRD // 2 + 1  # the half hour is rounded to even with the rest
    found = await booked(db)
    assert found[202701] == january
    whole = (THIRD * (72 * 2 - 1) + 1) // 2
    assert sum(found.values()) == whole


async def test_a_cost_that_changes_or_ends_is_booked_to_that_moment(db: Database) -> None:
    await apply(db, costing("2"), START_MS)
    await apply(db, costing("4"), START_MS + HOUR_MS)
    await apply(db, costing(None), START_MS + 2 * HOUR_MS)
    await book(db, START_MS + 9 * HOUR_MS)

    assert await booked(db) == {202701: 2 * 10**9 + 4 * 10**9}


async def test_the_books_and_the_margin_say_the_same(db: Database) -> None:
    await apply(db, costing("0.333333333"), START_MS)
    end_ms = START_MS + 40 * HOUR_MS + HOUR_MS // 2
    await book(db, START_MS + 5 * HOUR_MS)
    await book(db, end_ms)

    found = await booked(db)
    async with db.read() as connection:
        for month, nano in found.items():
            (row,) = await by_model(connection, month, end_ms)
            assert (row["model"], parse_amount(row["hour_cost"])) == ("(idle)", nano)


async def test_without_costs_by_the_hour_nothing_is_booked(db: Database) -> None:
    await apply(db, costing(None), START_MS)

    assert await book(db, START_MS + 9 * HOUR_MS) == 0
