"""Keeps a data process's snapshot as control has it: full loads, changes in slices, or the kept file.

A full load is built beside the snapshot in use and swapped in whole, so that no request sees half of
it. Not here: what a snapshot holds (``gateway.snapshot``), how frames come (``gateway.link``).
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.engines import Engines
from gateway.link.messages import Moves
from gateway.link.snapshot_file import read as read_snapshot_file
from gateway.snapshot import Snapshot

#: How long a fresh process waits for control before it starts from the snapshot file.
FIRST_S = 2.0
#: Moves applied in one turn of the loop: a turn stays under 5 ms.
MOVES_PER_TURN = 200
log = logging.getLogger("gateway.snapshot_feed")


class SnapshotFeed:
    """``heard_s``: when control was last known to agree, on ``monotonic``. ``kept``: the file of control's
    last snapshot; ``on_applied(version)`` runs when a version is in use as a whole.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        engines: Engines,
        kept: Path,
        monotonic: Callable[[], float],
        on_applied: Callable[[int], None],
    ) -> None:
        self._snapshot = snapshot
        self._engines = engines
        self._kept = kept
        self._monotonic = monotonic
        self._on_applied = on_applied
        self._moves: list[Moves] = []
        self._waiting = asyncio.Event()
        self._loaded = asyncio.Event()
        self._staged: Snapshot | None = None
        self.heard_s = monotonic()

    def begin(self) -> None:
        """A connection to control begins: what another one had begun to load is void."""
        self._staged = None

    def take(self, body: bytes) -> None:
        """A frame of moves, to be applied in its turn."""
        self._moves.append(msgspec.msgpack.decode(body, type=Moves))
        self._waiting.set()

    async def first(self) -> None:
        """Control's first snapshot; where it does not come, the file's, if there is one."""
        try:
            await asyncio.wait_for(self._loaded.wait(), FIRST_S)
        except TimeoutError:
            kept = read_snapshot_file(self._kept)
            if kept is not None and not self._loaded.is_set():
                version, moves = kept
                self._snapshot.apply(version, moves)
                self._engines.sync(self._snapshot)
                log.warning("control is away: serving from the snapshot file, version %d", version)

    async def run(self) -> None:
        """Apply what comes, for ever."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._moves:
                batch = self._moves.pop(0)
                await self._apply(batch)
                if batch.last:
                    self._applied(batch.version)

    async def _apply(self, batch: Moves) -> None:
        if batch.full and self._staged is None:
            self._staged = Snapshot()
        target = self._staged if batch.full and self._staged is not None else self._snapshot
        for start in range(0, len(batch.moves), MOVES_PER_TURN):
            target.apply(target.version, batch.moves[start : start + MOVES_PER_TURN])
            await asyncio.sleep(0)
        if batch.full and batch.last:
            self._snapshot.adopt(target)
            self._staged = None

    def _applied(self, version: int) -> None:
        self._snapshot.version = version
        self.heard_s = self._monotonic()
        self._engines.sync(self._snapshot)
        self._on_applied(version)
        self._loaded.set()
