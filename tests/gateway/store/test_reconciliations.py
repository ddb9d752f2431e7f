"""Points move on once, probes keep their cost, and the records of a stretch of time are found."""

from gateway.store import reconciliations
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]
URL = "http://10.0.0.5:8000"
ROW = {
    "endpoint": URL, "from_ms": 1, "to_ms": 5, "difference_tokens": 3, "first_point": "1",
    "last_point": "2", "report": "first",
}  # fmt: skip


async def moved(db: Database, since_ms: int, at_ms: int, **fields: object) -> bool:
    return await reconciliations.save(
        db, endpoint=URL, since_ms=since_ms, at_ms=at_ms, point=str(at_ms), found=[ROW | fields]
    )


async def test_a_point_begins_once_and_moves_on_for_one_of_two(db: Database) -> None:
    assert await reconciliations.read_point(db, URL) is None
    assert await reconciliations.begin(db, URL, 1, "1")
    assert not await reconciliations.begin(db, URL, 2, "2")
    assert await moved(db, 1, 5)
    assert not await moved(db, 1, 6)
    assert await reconciliations.read_point(db, URL) == "5"
    assert await reconciliations.read_reports(db) == ["first"]


async def test_a_difference_is_found_again_and_can_be_judged_again(db: Database) -> None:
    await reconciliations.begin(db, URL, 1, "1")
    await moved(db, 1, 5)
    await moved(db, 5, 9, difference_tokens=0, report="second", to_ms=9)
    assert await reconciliations.unexplained(db, 5) == []
    [found] = await reconciliations.unexplained(db, 4)
    assert (found.first, found.last, found.report) == ("1", "2", "first")
    await reconciliations.judge_again(db, found.id, "closed", 0)
    assert await reconciliations.unexplained(db, 0) == []
    assert await reconciliations.read_reports(db) == ["second", "closed"]
    assert await reconciliations.read_reports(db, endpoint="http://other") == []


async def test_a_probe_is_there_before_its_cost_is_known(db: Database) -> None:
    first = await reconciliations.open_probe(db, URL, 100)
    await reconciliations.open_probe(db, URL, 200)
    await reconciliations.close_probe(db, first, 150, (9, 1))
    assert await reconciliations.probes_between(db, 0, 99) == []
    assert [probe.started_ms for probe in await reconciliations.probes_between(db, 151, 300)] == [
        200
    ]
    [closed, open_one] = await reconciliations.probes_between(db, 0, 300)
    assert (closed.prompt_tokens, closed.completion_tokens) == (9, 1)
    assert (open_one.ended_ms, open_one.prompt_tokens) == (None, None)


async def test_what_is_older_than_it_is_kept_is_dropped(db: Database) -> None:
    await reconciliations.begin(db, URL, 1, "1")
    await moved(db, 1, 5)
    await moved(db, 5, 9, difference_tokens=0, report="second", to_ms=9)
    for started_ms in (5, 9):
        await reconciliations.open_probe(db, URL, started_ms)
    assert await reconciliations.prune(db, 9) == 2
    assert await reconciliations.read_reports(db) == ["second"]
    assert [each.started_ms for each in await reconciliations.probes_between(db, 0, 20)] == [9]
    assert await reconciliations.read_point(db, URL) is not None
    assert await reconciliations.prune(db, 9) == 0


async def test_records_open_at_any_time_in_between_are_found_page_by_page(
    db: Database, monkeypatch
) -> None:
    monkeypatch.setattr(reconciliations, "PAGE", 2)
    batch = [record(number, total_ms=100) for number in (1, 500, 600, 700, 5_000)]
    crash = record(2, total_ms=0, outcome="gateway_crash")
    await insert_records(db, [*batch, crash])
    pages = [
        page
        async for page in reconciliations.payloads_between(db, START_MS + 500, START_MS + 1_000)
    ]
    assert [len(page) for page in pages] == [2, 2]
    assert {payload for page in pages for payload in page} == {
        payload for payload, _ in [*batch[1:4], crash]
    }
