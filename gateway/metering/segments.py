"""A journal's segments as files: how they are called, found and allocated.

Not here: what is in them (``frames``), who writes them (``journal``).
"""

import os
from pathlib import Path


def allocate(path: Path, size: int, *, written: bool) -> int:
    """Open a segment of ``size`` bytes, allocated whole or not there at all. Raises ``OSError``.

    ``written``: full of zeros on the disk. A store into blocks that were never written makes the
    file system open a transaction at each page, and at each sync to say that they are now
    (PostgreSQL's wal_init_zero is for the same); it takes the time of the caller's thread alone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size == 0:  # else a former owner allocated it ahead
            os.posix_fallocate(descriptor, 0, size)
            if written:
                os.pwrite(descriptor, bytes(size), 0)
                os.fdatasync(descriptor)
        sync_folder(path.parent)
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def segment_paths(folder: Path) -> list[Path]:
    """The folder's segments, oldest first."""
    return sorted(folder.glob("journal-*.seg"), key=number_of)


def number_of(path: Path) -> int:
    return int(path.stem.removeprefix("journal-"))


def sync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
