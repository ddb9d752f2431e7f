"""The last snapshot as a file: what a data process starts from while control is away.

One line of magic, a SHA-256 of the rest, then (version, moves) as MessagePack. Written whole beside
its place, then renamed, so a reader sees the old one or the new one. It holds key digests, no
secrets, and is readable by its owner alone.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.snapshot import Move

_MAGIC = b"tf-snapshot 1\n"
_DIGEST_BYTES = 32
_decoder = msgspec.msgpack.Decoder(tuple[int, tuple[Move, ...]])


def write(path: str | Path, version: int, moves: Sequence[Move]) -> None:
    """Replace the file; 0600, on disk when it returns. Raises ``OSError``."""
    body = msgspec.msgpack.encode((version, moves))
    beside = f"{path}.{os.getpid()}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(_MAGIC + hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    Path(beside).replace(path)


def read(path: str | Path) -> tuple[int, tuple[Move, ...]] | None:
    """Version and moves of a full load; None when there is no whole file of this format."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    digest, body = data[len(_MAGIC) : start], data[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError:
        return None
