"""What control tells the data processes: the snapshot, whole at first and then its changes.

Control holds every document once, brought up to date from the change log; a peer gets from here
what it lacks, without SQL. Recent changes are kept so that a push is small; whoever lacks more gets
a full load. Not here: how documents come out of SQL (``gateway.loader``).
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.link import snapshot_file
from gateway.link.messages import Moves, Version
from gateway.link.server import LinkServer, Peer
from gateway.snapshot import Move, Snapshot

MOVES_PER_BODY = 500
#: Moves kept for peers that are a little behind; beyond, a full load is as cheap.
RECENT_MOVES_MAX = 5_000
POLL_S = 0.5
#: A peer told something gets this long to hold it before it is told again.
PATIENCE_S = 5.0
FILE_EVERY_S = 1.0
#: Who changed something waits this long for the data processes to hold it.
HELD_WITHIN_S = 1.0
_log = logging.getLogger("gateway.control")


class Source(Protocol):
    """Where documents come from (``gateway.loader.Loader``)."""

    async def full(self) -> tuple[int, list[Move]]:
        """The version, and every living document."""
        ...

    async def since(self, version: int) -> tuple[int, list[Move]] | None:
        """The version now and what changed; None when the log does not reach back that far."""
        ...


class Feed:
    """``start`` before the server serves; ``poll`` as often as you like, never twice at once."""

    def __init__(self, source: Source, server: LinkServer, file: Path) -> None:
        self.version = 0
        self.snapshot = Snapshot()  # the documents decoded, for recovery and the doctor
        self._source = source
        self._server = server
        self._file = file
        self._documents: dict[tuple[str, int], Move] = {}
        self._recent: deque[tuple[int, tuple[Move, ...]]] = deque()  # (version before, moves)
        self._recent_count = 0
        self._told: dict[Peer, tuple[int, float]] = {}
        self._polling = asyncio.Lock()
        self._heard = asyncio.Event()  # a data process said what it holds, or left
        self._file_version = -1

    async def start(self) -> None:
        """The first full load; raises what the database raises. The file is kept when it can be."""
        await self._load()
        await self.try_to_keep_file()

    async def poll(self) -> None:
        """Read the change log and push what is new."""
        async with self._polling:
            changes = await self._source.since(self.version)
            if changes is None:
                await self._load()
            elif changes[0] == self.version:
                return
            else:
                self._take(self.version, changes[0], tuple(changes[1]))
        for peer in list(self._server.peers):
            if peer.hello is not None:
                self._tell(peer, self._told.get(peer, (peer.version, 0.0))[0])

    async def held(self, within_s: float = HELD_WITHIN_S) -> bool:
        """Wait until every data process of this host holds the version of now; False: not in time."""
        version = self.version
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(peer.hello and peer.version < version for peer in self._server.peers):
                    self._heard.clear()
                    await self._heard.wait()
                return True
        return False

    async def run(self) -> None:
        """Poll for ever; a database that is away is asked again."""
        written_s = 0.0
        failing = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.poll()
                if time.monotonic() - written_s >= FILE_EVERY_S:
                    await self.keep_file()
                    written_s = time.monotonic()
                failing = False
            except Exception as error:  # noqa: BLE001 -- the wall of this task: serving goes on
                if not failing:  # said once, not twice a second
                    _log.error("the change log cannot be read: %s", type(error).__name__)
                failing = True

    async def try_to_keep_file(self) -> None:
        """A full disk stops nothing here: the file is for starts without a control process."""
        try:
            await self.keep_file()
        except OSError as error:
            _log.error("the snapshot file cannot be written: %s", error.strerror)

    async def keep_file(self) -> None:
        """Write the snapshot file if it is behind. Raises ``OSError``."""
        if self._file_version == self.version:
            return
        version, moves = self.version, list(self._documents.values())
        await asyncio.to_thread(snapshot_file.write, self._file, version, moves)
        self._file_version = version

    # -- the link's handlers -----------------------------------------------------------------

    def on_hello(self, peer: Peer, _body: bytes) -> None:
        self._tell(peer, peer.version)

    def on_version(self, peer: Peer, body: bytes) -> None:
        peer.version = msgspec.msgpack.decode(body, type=Version).version
        self._heard.set()
        told, told_s = self._told.get(peer, (-1, 0.0))
        if peer.version == self.version:
            return
        if told == self.version and time.monotonic() - told_s < PATIENCE_S:
            return
        self._tell(peer, peer.version)

    def on_parted(self, peer: Peer) -> None:
        self._told.pop(peer, None)
        self._heard.set()

    # -- inside ------------------------------------------------------------------------------

    async def _load(self) -> None:
        version, moves = await self._source.full()
        self._documents = {(move.kind, move.id): move for move in moves}
        self._recent.clear()
        self._recent_count = 0
        self.version = version
        snapshot = Snapshot()
        snapshot.apply(version, self._documents.values())
        self.snapshot.adopt(snapshot)

    def _take(self, before: int, version: int, moves: tuple[Move, ...]) -> None:
        for move in moves:
            if move.doc is None:
                self._documents.pop((move.kind, move.id), None)
            else:
                self._documents[move.kind, move.id] = move
        self.version = version
        self.snapshot.apply(version, moves)
        self._recent.append((before, moves))
        self._recent_count += len(moves)
        while self._recent_count > RECENT_MOVES_MAX:
            self._recent_count -= len(self._recent.popleft()[1])

    def _tell(self, peer: Peer, held: int) -> None:
        """Bring a peer from ``held`` to the version of now."""
        self._told[peer] = (self.version, time.monotonic())
        changes = self._changes_since(held)
        for body in _bodies(
            self.version,
            changes if changes is not None else list(self._documents.values()),
            full=changes is None,
        ):
            peer.send("moves", body)

    def _changes_since(self, held: int) -> list[Move] | None:
        """The moves from ``held`` to now; None when a full load is needed."""
        if held == self.version and held > 0:
            return []
        for index, (before, _) in enumerate(self._recent):
            if before == held and held > 0:
                return [m for _, moves in list(self._recent)[index:] for m in moves]
        return None


def _bodies(version: int, moves: list[Move], *, full: bool) -> Iterable[bytes]:
    """Bodies of <= 500 moves, at least one; the last says so."""
    for start in range(0, max(1, len(moves)), MOVES_PER_BODY):
        part = tuple(moves[start : start + MOVES_PER_BODY])
        last = start + MOVES_PER_BODY >= len(moves)
        yield msgspec.msgpack.encode(Moves(version, full, last, part))
