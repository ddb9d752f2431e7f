"""Sums as they are read: by what is asked, over the asked time, page by page, the ledger's to the nano."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.rollups import DAY_MS, HOUR_MS
from gateway.store.summaries import EVER_MS, Asked, By, Names, summary
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]
DAY = START_MS // DAY_MS * DAY_MS
ANY = FULL["tenants"][0]["projects"][0]
TWO = FULL | {
    "tenants": [
        *FULL["tenants"],
        {"name": "umbra", "projects": [{"name": "bot", "keys": [{"name": "ci"}]}]},
    ]
}


async def asked(db: Database, *by: By, **more: Any) -> list[dict[str, Any]]:
    return (await summary(db, Asked(by=by, **more))).data


async def test_groups_are_those_that_are_asked_for_in_order_of_time(db: Database) -> None:
    await apply(db, TWO)
    await insert_records(
        db,
        [
            record(1, started_ms=DAY + 25 * HOUR_MS),
            record(2, started_ms=DAY),
            record(3, started_ms=DAY + HOUR_MS, key_id=2),
            record(4, started_ms=DAY + HOUR_MS, tenant_id=2, project_id=2, key_id=3),
        ],
    )
    rows = await asked(db, "key", "day")
    assert [(row["day"], row["key"], row["requests"]) for row in rows] == [
        ("2027-01-15", "acme/bot/ci", 1),
        ("2027-01-15", "acme/bot/any", 1),
        ("2027-01-15", "umbra/bot/ci", 1),
        ("2027-01-16", "acme/bot/ci", 1),
    ]
    assert [row["hour"] for row in await asked(db, "hour")] == [
        "2027-01-15T00:00:00Z", "2027-01-15T01:00:00Z", "2027-01-16T01:00:00Z",
    ]  # fmt: skip
    assert [(row["tenant"], row["requests"]) for row in await asked(db, "tenant")] == [
        ("acme", 3),
        ("umbra", 1),
    ]
    (whole,) = await asked(db)
    assert whole == {
        "requests": 4, "prompt_tokens": 40, "cached_tokens": 16, "completion_tokens": 12,
        "reasoning_tokens": 0, "unbilled_ms": 0, "cost": "0.000008", "charged": "0",
        "currency": "USD",
    }  # fmt: skip


async def test_filters_know_names_and_an_unknown_one_has_no_usage(db: Database) -> None:
    await apply(db, TWO)
    of_umbra = {"tenant_id": 2, "project_id": 2, "key_id": 3}
    await insert_records(db, [record(1), record(2, key_id=2), record(3, **of_umbra)])
    assert [row["requests"] for row in await asked(db, names=Names(tenant="acme"))] == [2]
    assert [row["requests"] for row in await asked(db, names=Names("acme", "bot", "ci"))] == [1]
    assert [row["requests"] for row in await asked(db, project_id=1, names=Names(key="ci"))] == [1]
    assert await asked(db, project_id=1, names=Names(tenant="umbra")) == []
    assert await asked(db, names=Names(model="gpt")) == []
    assert [row["requests"] for row in await asked(db, names=Names(model="llama"))] == [3]


async def test_a_range_is_whole_hours_and_the_page_says_which(db: Database) -> None:
    await insert_records(db, [record(n, started_ms=DAY + n * HOUR_MS) for n in range(80)])
    found = await summary(db, Asked(by=(), from_ms=DAY + HOUR_MS + 5, to_ms=DAY + 50 * HOUR_MS + 1))
    assert (found.from_ms - DAY, found.to_ms - DAY) == (HOUR_MS, 51 * HOUR_MS)
    assert found.data[0]["requests"] == 50
    days = await asked(db, "day", from_ms=DAY + 5 * HOUR_MS, to_ms=DAY + 74 * HOUR_MS)
    assert [row["requests"] for row in days] == [19, 24, 24, 2]
    assert await asked(db, from_ms=DAY + 90 * HOUR_MS) == []


@pytest.mark.parametrize("by", [("hour",), ("day", "key", "model"), ("key",)])
async def test_pages_hold_every_group_once(db: Database, by: tuple[By, ...]) -> None:
    await insert_records(
        db,
        [record(n, started_ms=DAY + n * 3 * HOUR_MS, key_id=n % 7, model_id=n % 2) for n in range(60)],
    )  # fmt: skip
    whole = await asked(db, *by)
    seen: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await summary(db, Asked(by=by, after=cursor, limit=4))
        assert len(page.data) <= 4
        seen += page.data
        cursor = page.next
    assert seen == whole


@pytest.mark.parametrize("cursor", ["x", "1", "1.2.3.USD", "-1.USD", "1.usd", "1.USD\n", "9" * 30])
async def test_a_cursor_of_another_question_is_refused(db: Database, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor: expected"):
        await summary(db, Asked(by=("day",), after=cursor))


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.integers(0, 72), st.integers(0, 72)), min_size=1, max_size=8))
async def test_any_range_sums_what_began_in_it(db: Database, ranges: list[tuple[int, int]]) -> None:
    await insert_records(db, [record(n, started_ms=DAY + n * HOUR_MS) for n in range(72)])
    for low, high in ranges:
        rows = await asked(db, from_ms=DAY + low * HOUR_MS, to_ms=DAY + high * HOUR_MS)
        assert sum(row["requests"] for row in rows) == max(0, high - low)


#: Hours after DAY that had requests: dense, then some of each week, then none for a year.
BUSY = (*range(30), 31, 55, *range(190, 1_500, 17), 9_000)


@pytest.fixture
async def used(db: Database) -> Database:
    """Two keys, two models, one of which is known by name, hour after hour."""
    await apply(db, FULL)
    rows = [
        record(n * 3 + m, started_ms=DAY + hour * HOUR_MS, key_id=m % 2 + 1, model_id=(n + m) % 2 + 1)
        for n, hour in enumerate(BUSY)
        for m in range(1 + n % 3)
    ]  # fmt: skip
    await insert_records(db, rows)
    return db


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    by=st.sets(st.sampled_from(["key", "model", "time"])),
    time=st.sampled_from(["day", "hour"]),
    span=st.tuples(st.integers(0, 1_600), st.integers(0, 1_600)) | st.none(),
    project_id=st.sampled_from([0, 1]),
    limit=st.integers(1, 40),
)
async def test_whatever_is_asked_is_what_the_records_add_up_to(
    used: Database,
    by: set[str],
    time: str,
    span: tuple[int, int] | None,
    project_id: int,
    limit: int,
) -> None:
    """Whichever sums answer, and however many pages it takes."""
    dimensions: Any = tuple(time if each == "time" else each for each in by)
    low, high = (-DAY // HOUR_MS, EVER_MS) if span is None else span
    wanted: Counter[tuple[int, ...]] = Counter()
    for n, hour in enumerate(BUSY):
        for m in range(1 + n % 3) if low <= hour < high else ():
            bucket = DAY // HOUR_MS + hour
            at = [bucket // 24 if time == "day" else bucket] if "time" in by else []
            of = {"key": m % 2 + 1, "model": (n + m) % 2 + 1}
            wanted[(*at, *(of[each] for each in ("key", "model") if each in by))] += 1
    from_ms, to_ms = DAY + low * HOUR_MS, min(DAY + high * HOUR_MS, EVER_MS)
    found: list[tuple[tuple[int, ...], int]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await summary(
            used,
            Asked(
                by=dimensions,
                from_ms=from_ms,
                to_ms=to_ms,
                project_id=project_id,
                after=cursor,
                limit=limit,
            ),
        )
        assert len(page.data) <= limit
        assert page.next is None or len(page.data) == limit
        found += [(group_of(row, time), row["requests"]) for row in page.data]
        cursor = page.next
    assert found == sorted(wanted.items())


def group_of(row: dict[str, Any], time: str) -> tuple[int, ...]:
    at = []
    if time in row:
        moment = datetime.fromisoformat(row[time]).replace(tzinfo=UTC).timestamp()
        at = [int(moment) // (86_400 if time == "day" else 3_600)]
    ids = {"acme/bot/ci": 1, "acme/bot/any": 2, "llama": 1, None: 2}
    return (*at, *(ids[row[each]] for each in ("key", "model") if each in row))
