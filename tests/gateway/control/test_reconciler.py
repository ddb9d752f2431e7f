"""Moments of rest, lives of engines, probes on record, and differences that late records close."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.control import reconciler
from gateway.control.capabilities import UsageFound
from gateway.control.reconciler import Reconciler
from gateway.metering.board import Slot
from gateway.metering.incarnation import Incarnation
from gateway.metering.slots import ids_of
from gateway.store import open_requests, reconciliations
from gateway.store.database import Database, open_database
from gateway.store.ledger import insert_records
from quotas.record import AttemptEntry
from routing.exposition import EngineCounters, Exposition
from tests.support.records import record
from tests.support.until import until

URL = "http://10.0.0.5:8000"
START_MS = 1_000_000


class Bench:
    """A reconciler whose clock stands where a test puts it."""

    def __init__(
        self, db: Database, folder: Path, *, others: bool = False, host: str = "one"
    ) -> None:
        self.now_ms = START_MS
        self.db = db
        self.shipped = 0
        self.reconciler = Reconciler(
            db,
            folder,
            ship=self.ship,
            endpoint_name=lambda _: URL,
            unix_ms=lambda: self.now_ms,
            others=others,
            host=host,
        )
        self.reconciler.others_ship_s = 0.05
        self.reconciler.others_tell_s = 0.5
        self._numbers = itertools.count(1)

    async def ship(self) -> None:
        self.shipped += 1

    def look(self, prompt: int, generation: int, *, running: int = 0, life: float = 1.0) -> None:
        counters = EngineCounters(prompt, generation, life)
        seen = Exposition(waiting=0, running=running, counters=counters)
        self.reconciler.scraped(URL, seen)

    def rest(self, prompt: int, generation: int, *, life: float = 1.0) -> None:
        """Two scrapes a second apart that say the same; then a second more."""
        for _ in range(2):
            self.look(prompt, generation, life=life)
            self.now_ms += 1_000

    async def answered(self, prompt: int, completion: int) -> None:
        """A request of 200 ms, whole, in the ledger."""
        began = self.now_ms
        self.now_ms += 200
        entry = AttemptEntry(1, URL, began, self.now_ms, 200, prompt, completion, 1)
        made = record(next(self._numbers), attempts=(entry,), started_ms=began, total_ms=200)
        await insert_records(self.db, [made])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    db = open_database(None, tmp_path)
    await db.migrate()
    yield Bench(db, tmp_path)
    await db.close()


async def differences(bench: Bench) -> list[tuple[int, int]]:
    found = await bench.reconciler.reconcile(patience_s=0)
    return [(each.difference_prompt, each.difference_generation) for each in found]


async def test_the_first_look_begins_and_the_next_judges_from_rest_to_rest(bench: Bench) -> None:
    bench.rest(50, 7)
    assert await differences(bench) == []
    await bench.answered(10, 3)
    bench.rest(60, 10)
    [report] = await bench.reconciler.reconcile(patience_s=0)
    assert report.exact
    assert (report.engine_prompt, report.engine_generation, report.attempts) == (10, 3, 1)
    assert bench.shipped == 2
    assert await differences(bench) == []  # nothing was seen since


async def test_a_counter_that_lies_by_one_is_published(bench: Bench) -> None:
    bench.rest(0, 0)
    await differences(bench)
    await bench.answered(10, 3)
    bench.rest(10, 4)
    assert await differences(bench) == [(0, 1)]
    gauges = bench.reconciler.gauges()
    assert gauges["tf_reconcile_difference_tokens"] == {
        f"{URL}\x1fprompt": 0,
        f"{URL}\x1fgeneration": 1,
    }


async def test_other_hosts_get_the_time_to_ship_what_ended_before_the_engine_rested(
    bench: Bench, tmp_path: Path
) -> None:
    several = Bench(bench.db, tmp_path, others=True)
    several.rest(0, 0)
    await differences(several)
    several.reconciler.others_ship_s = 2.0
    began_ms = several.now_ms
    several.now_ms += 200
    several.rest(10, 3)
    judging = asyncio.create_task(differences(several))
    await asyncio.sleep(0.3)
    several.now_ms = began_ms
    await several.answered(10, 3)  # by another host, which ships a moment later
    assert await judging == [(0, 0)]


async def test_a_record_that_comes_late_closes_the_difference(bench: Bench) -> None:
    bench.rest(0, 0)
    await differences(bench)
    began_ms = bench.now_ms
    bench.now_ms += 200
    bench.rest(10, 3)
    assert await differences(bench) == [(10, 3)]
    after_ms, bench.now_ms = bench.now_ms, began_ms
    await bench.answered(10, 3)
    bench.now_ms = after_ms
    bench.rest(10, 3)
    assert await differences(bench) == [(0, 0)]
    assert await reconciliations.unexplained(bench.db, 0) == []


async def test_an_engine_that_began_anew_is_judged_from_its_birth(bench: Bench) -> None:
    bench.rest(50, 7)
    await differences(bench)
    await bench.answered(10, 3)
    bench.rest(60, 10)
    birth_s = bench.now_ms / 1000
    bench.now_ms += 1_000
    await bench.answered(5, 2)
    bench.rest(5, 2, life=birth_s)
    assert await differences(bench) == [(0, 0), (0, 0)]


async def test_an_engine_that_does_not_say_when_it_began_is_judged_from_the_next_look(
    bench: Bench,
) -> None:
    bench.rest(50, 7, life=0)
    await differences(bench)
    bench.rest(5, 2, life=0)
    assert await differences(bench) == [(0, 0)]  # the old life's end; the new one begins here
    await bench.answered(4, 1)
    bench.rest(9, 3, life=0)
    assert await differences(bench) == [(0, 0)]


async def test_another_control_process_that_was_first_keeps_its_point(
    bench: Bench, tmp_path: Path
) -> None:
    bench.rest(0, 0)
    await differences(bench)
    other = Bench(bench.db, tmp_path)
    other.now_ms = bench.now_ms
    await bench.answered(10, 3)
    other.now_ms = bench.now_ms
    other.rest(10, 3)
    bench.rest(10, 3)
    assert await differences(other) == [(0, 0)]
    assert all(pair == (0, 0) for pair in await differences(bench))


async def test_what_runs_on_and_on_is_judged_with_room(bench: Bench) -> None:
    bench.look(0, 0, running=1)
    await differences(bench)
    bench.now_ms += 5_000
    await bench.answered(10, 3)
    bench.look(10, 9, running=1)
    [report] = await bench.reconciler.reconcile(patience_s=0)
    assert not report.exact
    assert report.difference_generation == 6  # nobody of ours can have made it
    assert report.explained_by[0].reason == "on its way at a scrape"


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[tuple[Incarnation, Slot]]:
    """A data process of another host, with a slot in use."""
    life = Incarnation.create(tmp_path / "abroad", 0, 16)
    slot = life.board.claim()
    assert slot is not None
    yield life, slot
    life.close()


async def hosts_live(db: Database, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await open_requests.ask(db, "nobody")) < count:
            await asyncio.sleep(0.01)


def sent(slot: Slot, now_ms: int) -> None:
    slot.reserving(bytes(16), ids_of(1, 2, 3, 4, 5), 0, 1, 1, 10, 50, now_ms)
    slot.reserved("e")
    slot.dispatched(0, 1, now_ms)


@pytest.mark.parametrize("says", [True, False])
async def test_what_other_hosts_have_open_at_an_engine_that_never_rests_is_allowed_for(
    bench: Bench,
    tmp_path: Path,
    abroad: tuple[Incarnation, Slot],
    monkeypatch: pytest.MonkeyPatch,
    says: bool,
) -> None:
    monkeypatch.setattr(reconciler, "TICK_S", 0.01)
    other = Bench(bench.db, tmp_path / "abroad", others=True, host="another")
    bench.look(0, 0, running=1)
    await differences(bench)
    bench.now_ms += 5_000
    sent(abroad[1], bench.now_ms)
    bench.now_ms += 1_000
    bench.look(12, 40, running=1)  # its prompt, and what it made so far; it runs on

    telling = asyncio.create_task(other.reconciler.run()) if says else None
    if says:
        await hosts_live(bench.db, 1)
    [report] = await bench.reconciler.reconcile(patience_s=0)

    assert not report.exact
    if telling is None:
        assert (report.difference_prompt, report.difference_generation) == (12, 40)
        return
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert (report.difference_prompt, report.difference_generation) == (0, 0)
    assert [(each.request_id, each.reason) for each in report.explained_by] == [
        (bytes(16).hex(), "not ended yet")
    ]
    assert other.shipped, "what had ended there was shipped before"
    assert report.generation.high == 50, "its cap: one token more would not be explained"


async def test_a_host_that_lives_and_says_nothing_is_not_waited_for_long(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await open_requests.note(bench.db, "deaf")
    bench.rest(0, 0)
    with caplog.at_level("WARNING", logger="gateway.control.reconciler"):
        await differences(bench)
    assert "did not say what they have open: deaf" in caplog.text


async def test_two_hosts_that_ask_each_other_at_once_both_get_an_answer(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconciler, "TICK_S", 0.01)
    hosts = [Bench(bench.db, tmp_path / name, others=True, host=name) for name in ("a", "b")]
    for each in hosts:
        each.reconciler.others_tell_s = 20
    running = [asyncio.create_task(each.reconciler.run()) for each in hosts]
    await hosts_live(bench.db, 2)
    await asyncio.gather(*(differences(each) for each in hosts))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert "did not say" not in caplog.text


async def test_a_probe_is_on_record_before_it_is_asked_and_has_its_cost_after(bench: Bench) -> None:
    seen = []

    async def ask() -> UsageFound:
        bench.now_ms += 100
        seen.extend(await reconciliations.probes_between(bench.db, 0, bench.now_ms))
        return UsageFound("continuous", 9, 1)

    bench.rest(0, 0)
    await differences(bench)
    assert (await bench.reconciler.probing(URL, ask)).prompt_tokens == 9
    assert [probe.prompt_tokens for probe in seen] == [None]
    bench.rest(9, 1)
    [report] = await bench.reconciler.reconcile(patience_s=0)
    assert (report.probes, report.difference_prompt, report.difference_generation) == (1, 0, 0)


async def test_an_engine_without_counters_is_left_alone(bench: Bench) -> None:
    bench.reconciler.scraped(URL, Exposition(waiting=0, running=0))
    assert await differences(bench) == []
    assert bench.reconciler.gauges() == {}


async def test_it_reconciles_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "TICK_S", 0.001)
    monkeypatch.setattr(reconciler, "EVERY_S", 0.01)
    bench.rest(0, 0)
    running = asyncio.create_task(bench.reconciler.run())
    await until(lambda: bench.shipped, 20)
    await bench.answered(10, 3)
    bench.rest(10, 4)
    await until(lambda: URL in bench.reconciler.newest, 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    report = bench.reconciler.newest[URL]
    assert (report.attempts, report.difference_prompt, report.difference_generation) == (1, 0, 1)


async def test_the_hourly_work_outlives_a_database_that_is_away(bench: Bench) -> None:
    await bench.db.close()
    running = asyncio.create_task(bench.reconciler.run())
    await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
