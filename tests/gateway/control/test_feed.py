"""What a data process is told: everything once, then changes, and a full load when it must be."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.control.feed import Feed
from gateway.link import snapshot_file
from gateway.link.client import LinkClient
from gateway.link.messages import Hello, Moves, Version
from gateway.link.server import LinkServer
from gateway.snapshot import Move, Snapshot, TenantDoc, encode_doc
from tests.support.until import until


def tenant(row_id: int, name: str) -> Move:
    return Move("tenant", row_id, encode_doc(TenantDoc(id=row_id, name=name)))


class Log:
    """A change log in memory: what the database would say."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.cut = False
        self.loads = 0

    async def full(self) -> tuple[int, list[Move]]:
        self.loads += 1
        last = {(m.kind, m.id): m for m in self.moves}
        return len(self.moves), [m for m in last.values() if m.doc is not None]

    async def since(self, version: int) -> tuple[int, list[Move]] | None:
        return None if self.cut else (len(self.moves), self.moves[version:])


class Process:
    """A data process's end: a snapshot, and every body it was sent."""

    def __init__(self, path: Path, *, answers: bool = True) -> None:
        self.snapshot = Snapshot()
        self.bodies: list[Moves] = []
        self._answers = answers
        self.link = LinkClient(
            str(path), lambda: Hello(0, 1, self.snapshot.version), {"moves": self._on_moves}
        )

    def _on_moves(self, body: bytes) -> None:
        moves = msgspec.msgpack.decode(body, type=Moves)
        self.bodies.append(moves)
        self.snapshot.apply(self.snapshot.version, moves.moves)
        if moves.last:
            self.snapshot.version = moves.version
            if self._answers:
                self.poll()

    def poll(self) -> None:
        self.link.send("version", msgspec.msgpack.encode(Version(self.snapshot.version)))


@asynccontextmanager
async def joined(tmp_path: Path, log: Log, *processes: Process) -> AsyncIterator[Feed]:
    server = LinkServer({})
    feed = Feed(log, server, tmp_path / "snapshot")
    await feed.start()
    server.on_parted = feed.on_parted
    server.handlers.update(hello=feed.on_hello, version=feed.on_version)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "l"))
    sock.listen()
    await server.serve(sock)
    tasks = [asyncio.create_task(process.link.run()) for process in processes]
    try:
        yield feed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()


async def test_a_fresh_process_gets_everything_and_then_changes(tmp_path: Path) -> None:
    log = Log()
    log.moves += [tenant(n, f"t{n}") for n in range(1, 1_202)]
    process = Process(tmp_path / "l")
    async with joined(tmp_path, log, process) as feed:
        await until(lambda: process.snapshot.version == 1_201)
        assert [(len(b.moves), b.full, b.last) for b in process.bodies] == [
            (500, True, False),
            (500, True, False),
            (201, True, True),
        ]
        log.moves += [tenant(1, "renamed"), Move("tenant", 2, None)]
        await feed.poll()
        await until(lambda: process.snapshot.version == 1_203)
        assert (process.bodies[-1].full, len(process.bodies[-1].moves)) == (False, 2)
        assert process.snapshot.tenants[1].name == "renamed"
        assert 2 not in process.snapshot.tenants
        assert feed.snapshot.tenants == process.snapshot.tenants
    assert log.loads == 1


async def test_a_change_is_held_when_every_process_has_said_so(tmp_path: Path) -> None:
    log = Log()
    log.moves.append(tenant(1, "a"))
    processes = [Process(tmp_path / "l") for _ in range(2)]
    async with joined(tmp_path, log, *processes) as feed:
        assert await feed.held(0.1), "nobody is there to wait for"
        await until(lambda: all(each.snapshot.version == 1 for each in processes))
        log.moves.append(tenant(2, "b"))
        await feed.poll()
        assert await feed.held(5.0)
        assert [each.snapshot.version for each in processes] == [2, 2]


async def test_a_process_that_does_not_answer_holds_up_a_change_for_a_moment_only(
    tmp_path: Path,
) -> None:
    log = Log()
    log.moves.append(tenant(1, "a"))
    mute = Process(tmp_path / "l", answers=False)
    async with joined(tmp_path, log, mute) as feed:
        await until(lambda: mute.bodies)
        assert not await feed.held(0.05)
        waiting = asyncio.create_task(feed.held(5.0))
        mute.poll()
        assert await waiting


async def test_a_disk_without_room_for_the_file_stops_no_start(tmp_path: Path) -> None:
    log = Log()
    log.moves.append(tenant(1, "a"))
    feed = Feed(log, LinkServer({}), tmp_path / "not there" / "snapshot")
    await feed.start()
    assert feed.version == 1
    with pytest.raises(OSError, match="No such file"):
        await feed.keep_file()


async def test_an_empty_database_is_a_snapshot_too(tmp_path: Path) -> None:
    process = Process(tmp_path / "l")
    async with joined(tmp_path, Log(), process):
        await until(lambda: process.bodies)
    assert process.bodies[0] == Moves(version=0, full=True, last=True, moves=())


async def test_one_that_returns_a_little_behind_gets_the_changes_alone(tmp_path: Path) -> None:
    log = Log()
    log.moves += [tenant(1, "a")]
    late = Process(tmp_path / "l")
    late.snapshot.apply(1, log.moves)
    async with joined(tmp_path, log) as feed:
        log.moves.append(tenant(2, "b"))
        await feed.poll()
        task = asyncio.create_task(late.link.run())
        await until(lambda: late.snapshot.version == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [(b.full, len(b.moves)) for b in late.bodies] == [(False, 1)]


async def test_a_log_cut_short_means_a_full_load(tmp_path: Path) -> None:
    log = Log()
    log.moves += [tenant(1, "a")]
    process = Process(tmp_path / "l")
    async with joined(tmp_path, log, process) as feed:
        await until(lambda: process.snapshot.version == 1)
        log.cut = True
        log.moves.append(tenant(2, "b"))
        await feed.poll()
        await until(lambda: process.snapshot.version == 2)
    assert process.bodies[-1].full
    assert log.loads == 2


async def test_a_process_busy_with_what_it_was_told_is_not_told_again(tmp_path: Path) -> None:
    log = Log()
    log.moves += [tenant(1, "a")]
    process = Process(tmp_path / "l", answers=False)
    async with joined(tmp_path, log, process) as feed:
        await until(lambda: process.bodies)
        process.snapshot.version = 0
        process.poll()
        process.poll()
        log.moves.append(tenant(2, "b"))
        await feed.poll()
        await until(lambda: process.snapshot.version == 2)
    assert [b.full for b in process.bodies] == [True, False]


async def test_the_snapshot_file_is_what_a_fresh_process_would_get(tmp_path: Path) -> None:
    log = Log()
    log.moves += [tenant(1, "a"), tenant(2, "b")]
    async with joined(tmp_path, log) as feed:
        assert snapshot_file.read(tmp_path / "snapshot") == (2, tuple(log.moves))
        log.moves.append(Move("tenant", 1, None))
        await feed.poll()
        await feed.keep_file()
        assert snapshot_file.read(tmp_path / "snapshot") == (3, (log.moves[1],))
