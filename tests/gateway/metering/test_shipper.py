"""Journals to the ledger: of the living and the dead, through outages, each record once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.metering import shipper as shipper_module
from gateway.metering.incarnation import Incarnation, all_folders
from gateway.metering.journal import segment_paths
from gateway.metering.shipper import Shipper
from quotas.record import UsageRecord, encode
from tests.support.ledgers import Ledger, LedgerAway, Settles
from tests.support.lives import CONTEXT, final_record, live
from tests.support.until import until

SEGMENT = 16_384


def number(each: int) -> bytes:
    return each.to_bytes(16)


def write(life: Incarnation, first: int, count: int) -> list[int]:
    """Records of ended requests; their sequences."""
    return [
        life.journal.append(encode(final_record(number(each), 10, each)))
        for each in range(first, first + count)
    ]


class Ship:
    """A shipper with its ledger and store; several, one after another, share both."""

    def __init__(self, data_dir: Path) -> None:
        self.ledger = Ledger()
        self.store = Settles()
        self.data_dir = data_dir
        self.shipper = self.another()

    def another(self, lanes: int = 1) -> Shipper:
        made = Shipper(
            self.data_dir,
            self.ledger.insert,
            self.store,
            CONTEXT,
            known=self.ledger.known,
            lanes=lanes,
        )
        self.shipper = made
        return made


@pytest.fixture
async def ship(data_dir: Path) -> AsyncIterator[Ship]:
    made = Ship(data_dir)
    yield made
    await made.shipper.close()


async def test_a_living_journal_is_shipped_and_its_settles_are_left_to_the_owner(
    ship: Ship,
) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 3)
    assert await ship.shipper.ship_once() == 3
    write(life, 3, 2)
    assert await ship.shipper.ship_once() == 2
    assert await ship.shipper.ship_once() == 0
    assert len(ship.ledger.rows) == 5
    assert ship.store.settled == []
    lag = ship.shipper.lag()
    assert (lag.folders, lag.unshipped, lag.unsettled) == (1, 0, 5)
    assert lag.journal_bytes == life.journal.bytes_used
    life.close()


async def test_segments_are_freed_when_shipped_and_settled_and_not_before(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    sequences = write(life, 0, 100)
    await until(lambda: life.journal._ahead >= 0)
    before = len(segment_paths(life.folder))
    assert before > 3
    await ship.shipper.ship_once()
    await ship.shipper.ship_once()
    assert len(segment_paths(life.folder)) == before  # shipped, and not settled
    for sequence in sequences[1:]:
        life.journal.mark_settled(sequence)
    life.journal.flush()
    await ship.shipper.ship_once()
    assert len(segment_paths(life.folder)) == before  # the first record waits for its settle
    life.journal.mark_settled(sequences[0])
    life.journal.flush()
    await ship.shipper.ship_once()
    assert len(segment_paths(life.folder)) <= 2  # the one in use, and the one ahead
    write(life, 100, 1)
    assert await ship.shipper.ship_once() == 1
    life.close()


async def test_a_dead_life_is_settled_shipped_and_its_folder_removed(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    sequences = write(life, 0, 3)
    life.journal.mark_settled(sequences[1])
    for step in live(life):
        if step == "counted":
            break
    life.close()
    assert await ship.shipper.ship_once() == 4
    settled = [settlement.reservation_id for settlement in ship.store.settled]
    assert settled == [number(0).hex(), number(2).hex(), bytes(range(16)).hex()]
    assert all_folders(ship.data_dir) == []
    assert ship.shipper.drained


async def test_a_folder_stays_until_the_store_has_acknowledged(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 2)
    life.close()
    ship.store.holding = True
    await ship.shipper.ship_once()
    assert all_folders(ship.data_dir) == [life.folder]
    assert not ship.shipper.drained
    await ship.shipper.close()  # as if control stopped: another goes on, and settles again

    again = ship.another()
    await again.ship_once()
    assert len(ship.store.settled) == 4
    ship.store.acknowledge()
    await again.ship_once()
    assert all_folders(ship.data_dir) == []
    assert ship.ledger.offered == {number(0).hex(): 1, number(1).hex(): 1}


async def test_without_a_store_the_dead_settle_nothing(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 2)
    next(live(life))
    life.close()
    alone = Shipper(ship.data_dir, ship.ledger.insert, None, CONTEXT, known=ship.ledger.known)
    assert await alone.ship_once() == 2
    assert all_folders(ship.data_dir) == []
    await alone.close()


async def test_an_outage_of_the_ledger_loses_nothing(
    ship: Ship, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    ship.ledger.away = True
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    dead = Incarnation.create(ship.data_dir, 1, 16, SEGMENT)
    write(dead, 1_000, 5)
    for step in live(dead):
        if step == "dispatched":
            break
    dead.close()
    running = asyncio.create_task(ship.shipper.run(interval_s=0.01))
    write(life, 0, 50)
    await until(lambda: ship.shipper.lag().unshipped >= 50)
    assert ship.shipper.lag().oldest_unshipped_s >= 0
    assert ship.ledger.rows == {}
    for folder in ship.shipper._folders.values():
        folder.retry_at_s = 0.0  # not to wait five seconds for the dead one's next try
    ship.ledger.away = False
    await until(lambda: len(ship.ledger.rows) == 56)
    await until(lambda: not dead.folder.exists())
    assert set(ship.ledger.offered.values()) == {1}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    life.close()


async def test_a_failed_insert_is_told_to_the_caller_of_one_pass(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 1)
    ship.ledger.away = True
    with pytest.raises(LedgerAway):
        await ship.shipper.ship_once()
    ship.ledger.away = False
    assert await ship.shipper.ship_once() == 1
    life.close()


async def test_losing_the_mark_of_what_was_shipped_only_ships_again(ship: Ship) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 3)
    await ship.shipper.ship_once()
    assert await ship.another().ship_once() == 0
    (life.folder / "shipped").write_text("")
    assert await ship.another().ship_once() == 3
    assert ship.ledger.conflicts == []
    assert len(ship.ledger.rows) == 3
    life.close()


async def test_a_large_backlog_is_shipped_in_batches(
    ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "BATCH", 10)
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 125)
    assert await ship.shipper.ship_once() == 100
    assert await ship.shipper.ship_once() == 25
    assert list(ship.ledger.rows) == [number(each).hex() for each in range(125)]
    life.close()


class Gated(Ledger):
    """Each batch waits at a gate; ``fail``: the first record of a batch that fails, once."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, asyncio.Event] = {}
        self.inside = self.most = 0
        self.fail = ""

    async def insert(self, records: list[tuple[bytes, UsageRecord]]) -> int:
        name = records[0][1].request_id
        self.waiting[name] = gate = asyncio.Event()
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await gate.wait()
        finally:
            self.inside -= 1
            del self.waiting[name]
        if self.fail == name:
            self.fail = ""
            raise LedgerAway
        return await super().insert(records)


@pytest.fixture
def gated(ship: Ship, monkeypatch: pytest.MonkeyPatch) -> Gated:
    monkeypatch.setattr(shipper_module, "BATCH", 10)
    ship.ledger = ledger = Gated()
    ship.another(lanes=2)
    return ledger


async def test_lanes_insert_two_batches_at_once_and_remember_them_in_order(
    ship: Ship, gated: Gated
) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 35)
    shipping = asyncio.create_task(ship.shipper.ship_once())
    first, second, third, fourth = (number(each).hex() for each in (0, 10, 20, 30))
    await until(lambda: gated.waiting.keys() == {first, second})
    gated.waiting[second].set()
    await until(lambda: second in gated.rows)
    assert not (life.folder / "shipped").exists()  # the first may still fail
    gated.waiting[first].set()
    await until(lambda: gated.waiting.keys() == {third, fourth})
    assert (life.folder / "shipped").read_text() == "20\n"
    for gate in list(gated.waiting.values()):
        gate.set()
    assert await shipping == 35
    assert (life.folder / "shipped").read_text() == "35\n"
    assert (gated.most, set(gated.offered.values())) == (2, {1})
    life.close()


async def test_a_batch_that_fails_takes_back_the_one_beside_it(ship: Ship, gated: Gated) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 20)
    first, second = number(0).hex(), number(10).hex()
    gated.fail = first
    shipping = asyncio.create_task(ship.shipper.ship_once())
    await until(lambda: gated.waiting.keys() == {first, second})
    gated.waiting[first].set()
    with pytest.raises(LedgerAway):
        await shipping
    assert (gated.inside, gated.rows) == (0, {})
    again = asyncio.create_task(ship.shipper.ship_once())
    await until(lambda: gated.waiting.keys() == {first, second})
    for gate in list(gated.waiting.values()):
        gate.set()
    assert await again == 20
    assert gated.offered.keys() == {number(each).hex() for each in range(20)}
    life.close()


async def test_a_pass_that_is_given_up_leaves_no_insert_behind(ship: Ship, gated: Gated) -> None:
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    write(life, 0, 20)
    shipping = asyncio.create_task(ship.shipper.ship_once())
    await until(lambda: gated.inside == 2)
    shipping.cancel()
    await asyncio.gather(shipping, return_exceptions=True)
    assert (gated.inside, gated.rows) == (0, {})
    life.close()


async def test_a_record_nobody_can_read_is_put_aside_and_blocks_nothing(
    ship: Ship, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)
    life.journal.append(b"\xc1 from the future")
    write(life, 0, 1)
    life.close()
    assert await ship.shipper.ship_once() == 1
    assert all_folders(ship.data_dir) == []
    (kept,) = (ship.data_dir / "quarantine").iterdir()
    assert kept.read_bytes() == b"\xc1 from the future"
    assert ship.shipper.quarantined == 1


async def test_a_journal_is_read_while_it_is_written(ship: Ship) -> None:
    """The writer in another thread, with small segments; every record arrives once, in order."""
    life = Incarnation.create(ship.data_dir, 0, 16, SEGMENT)

    def writing() -> None:
        for sequence in write(life, 0, 2_000):
            life.journal.mark_settled(sequence)

    writer = asyncio.create_task(asyncio.to_thread(writing))
    while not writer.done():
        await ship.shipper.ship_once()
    await writer
    life.close()
    await ship.shipper.ship_once()
    assert list(ship.ledger.rows) == [number(each).hex() for each in range(2_000)]
    assert set(ship.ledger.offered.values()) == {1}
    assert all_folders(ship.data_dir) == []
