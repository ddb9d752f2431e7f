"""A full load is swapped in whole, changes come in turn, and the kept file serves while control is away."""

import asyncio

import msgspec
import pytest

from gateway import snapshot_feed
from gateway.engines import Engines
from gateway.link.messages import Moves
from gateway.link.snapshot_file import write
from gateway.snapshot import Move, Snapshot, TenantDoc, encode_doc
from gateway.snapshot_feed import MOVES_PER_TURN, SnapshotFeed
from tests.support.until import until


def tenant(number: int, name: str = "acme") -> Move:
    return Move("tenant", number, encode_doc(TenantDoc(id=number, name=name)))


def frame(version: int, *moves: Move, full: bool = False, last: bool = True) -> bytes:
    return msgspec.msgpack.encode(Moves(version, full, last, moves))


class Bench:
    def __init__(self, folder):
        self.kept = folder / "snapshot"
        self.snapshot = Snapshot()
        self.applied = []
        self.now_s = 5.0
        self.feed = SnapshotFeed(
            self.snapshot, Engines({}, 4.0), self.kept, lambda: self.now_s, self.applied.append
        )

    async def applies(self, *versions):
        await until(lambda: self.applied == list(versions))

    def names(self):
        return {number: each.name for number, each in self.snapshot.tenants.items()}


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path)
    task = asyncio.create_task(made.feed.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_changes_are_applied_in_their_turn(bench):
    bench.now_s = 9.0
    bench.feed.take(frame(1, tenant(1), full=True))
    bench.feed.take(frame(2, tenant(1, "other"), tenant(2)))
    await bench.applies(1, 2)

    assert bench.names() == {1: "other", 2: "acme"}
    assert (bench.snapshot.version, bench.feed.heard_s) == (2, 9.0)


async def test_no_request_sees_half_of_a_full_load(bench):
    bench.feed.take(frame(1, tenant(1), full=True))
    await bench.applies(1)
    many = [tenant(number) for number in range(2, 2 * MOVES_PER_TURN)]
    bench.feed.take(frame(2, *many, full=True, last=False))
    await asyncio.sleep(0.01)
    assert bench.names() == {1: "acme"}, "the one in use is untouched"

    bench.feed.take(frame(2, tenant(1000), full=True))
    await bench.applies(1, 2)
    assert bench.names() == dict.fromkeys([*range(2, 2 * MOVES_PER_TURN), 1000], "acme")


async def test_a_load_that_another_connection_began_is_void(bench):
    bench.feed.take(frame(1, tenant(1), full=True, last=False))
    await asyncio.sleep(0.01)
    bench.feed.begin()
    bench.feed.take(frame(2, tenant(2), full=True))
    await bench.applies(2)

    assert bench.names() == {2: "acme"}


@pytest.mark.parametrize("kept", [True, False])
async def test_without_control_the_kept_file_serves_if_there_is_one(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(snapshot_feed, "FIRST_S", 0.01)
    bench = Bench(tmp_path)
    if kept:
        write(bench.kept, 7, [tenant(1)])
    await bench.feed.first()

    assert bench.snapshot.version == (7 if kept else 0)
    assert bench.names() == ({1: "acme"} if kept else {})
    assert bench.applied == [], "control was not heard"


async def test_controls_own_snapshot_is_waited_for(bench):
    write(bench.kept, 7, [tenant(1)])
    bench.feed.take(frame(9, tenant(2), full=True))
    await bench.feed.first()

    assert (bench.snapshot.version, bench.names()) == (9, {2: "acme"})
