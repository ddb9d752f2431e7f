"""One life of a data process, as a folder: its board, its journal, and the lock it holds.

``<data_dir>/run/<utc>-<slot>-<pid>-<random>/`` holds ``board``, ``journal-000001.seg`` and on,
``lock`` (an exclusive flock for as long as the owner lives; the kernel lets go of it whatever ends
the owner) and ``shipped``, the shipper's mark. Nothing is ever reused by a later life. Not here:
what a dead life's folder still owes (``backlog``, ``recovery``).
"""

import fcntl
import os
import secrets
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from gateway.metering.board import Board
from gateway.metering.journal import SEGMENT_BYTES, Journal
from gateway.metering.segments import segment_paths, sync_folder

BOARD = "board"
LOCK = "lock"
RUN = "run"
#: A folder in the making has this prefix; half-made ones of a killed start are swept after a while.
NEW_PREFIX = ".new-"
NEW_AGE_S = 60.0


class Incarnation:
    """Held by the data process from start to end. ``close`` leaves the folder to the shipper."""

    def __init__(self, folder: Path, board: Board, journal: Journal, lock_fd: int) -> None:
        self.folder = folder
        self.board = board
        self.journal = journal
        self._lock_fd = lock_fd

    @classmethod
    def create(
        cls, data_dir: Path, slot: int, board_slots: int, segment_bytes: int = SEGMENT_BYTES
    ) -> "Incarnation":
        """Make the folder, all files allocated. ``slot``: the data process's number.

        It appears under its name only when locked, so nobody takes it for dead. Raises
        ``OSError`` when the disk is full or not writable, and then nothing is left behind.
        """
        folder, lock_fd = _locked_folder(data_dir / RUN, slot)
        board = None
        try:
            board = Board(folder / BOARD, board_slots)
            journal = Journal(folder, segment_bytes)
        except OSError:
            if board is not None:
                board.close()
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock_fd)
            raise
        return cls(folder, board, journal, lock_fd)

    @property
    def name(self) -> str:
        """The folder's: unique for ever."""
        return self.folder.name

    def close(self) -> None:
        """Everything written and synced; then the lock goes. Open slots are left for recovery."""
        try:
            self.journal.close()
        finally:
            self.board.close()
            os.close(self._lock_fd)


def take_lock(folder: Path) -> int | None:
    """The folder's lock as a descriptor to close; None while somebody else holds it, or when the
    folder has gone.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def all_folders(data_dir: Path) -> list[Path]:
    """Every life that has left something, oldest first; the living too."""
    run = data_dir / RUN
    if not run.is_dir():
        return []
    return sorted(path for path in run.iterdir() if path.is_dir() and not path.name.startswith("."))


def dead_folders(data_dir: Path) -> list[Path]:
    """Those whose owner is gone and nobody recovers just now."""
    found = []
    for folder in all_folders(data_dir):
        descriptor = take_lock(folder)
        if descriptor is not None:
            os.close(descriptor)
            found.append(folder)
    return found


def remove_folder(folder: Path) -> None:
    """Take a dead life's folder away. The caller holds the lock and knows that nothing is owed.

    Oldest segments first, so that a kill here leaves no frame without its mark; the lock last.
    """
    for path in segment_paths(folder):
        path.unlink()
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()
    (folder / LOCK).unlink()
    folder.rmdir()


def sweep_unborn(data_dir: Path) -> None:
    """Remove folders whose making was cut off: they never held a request."""
    run = data_dir / RUN
    for path in run.glob(NEW_PREFIX + "*"):
        if time.time() - path.stat().st_mtime < NEW_AGE_S:
            continue
        descriptor = take_lock(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _locked_folder(run: Path, slot: int) -> tuple[Path, int]:
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    name = f"{stamp}-{slot}-{os.getpid()}-{secrets.token_hex(4)}"
    making = run / (NEW_PREFIX + name)
    making.mkdir(mode=0o700)
    lock_fd = take_lock(making)
    assert lock_fd is not None
    making.rename(run / name)
    sync_folder(run)
    return run / name, lock_fd
