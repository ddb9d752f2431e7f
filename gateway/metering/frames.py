"""The journal's frames as bytes: packed one at a time, read until the first that is not whole.

Pure. A torn tail is normal (a kill in mid-write, a power cut), so reading never raises; a reader
that wants to know whether the tail is clean asks ``is_clean``. The frame (length, sequence,
checksum, payload) is the write-ahead log's, as in LevelDB's log format, without its blocks.

    0 magic 0xF7   1 version   2 kind   3 zero   4 length u32   8 sequence u64   16 crc32 u32
    20 payload; the crc covers bytes 0..16 and the payload; integers little-endian
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Protocol
from zlib import crc32

import msgspec

MAGIC = 0xF7
VERSION = 1
_HEAD = Struct("<BBBxIQ")
_CRC = Struct("<I")
FRAME_HEAD_BYTES = _HEAD.size + _CRC.size
PAYLOAD_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = FRAME_HEAD_BYTES + PAYLOAD_BYTES_MAX


class Buffer(Protocol):
    """Bytes that may be stored into: a mapped segment."""

    def __setitem__(self, at: slice, data: bytes, /) -> None: ...


class FrameKind(IntEnum):
    """What the payload is. Records, releases and settles each wait for a mark."""

    RECORD = 1  # an encoded UsageRecord, to ship and to settle
    MARKS = 2  # sequences (u64 each) whose settle or release was acknowledged
    RELEASE = 3  # a Release: give a reservation back, no record
    SETTLE = 4  # a Settlement whose record is in the ledger already


class Frame(msgspec.Struct, frozen=True):
    """A whole frame; ``offset`` and ``end`` are bytes from the segment's start."""

    kind: int
    sequence: int
    payload: bytes
    offset: int
    end: int


class Release(msgspec.Struct, frozen=True, array_like=True):
    tag: str
    reservation_id: str


def pack_frame(kind: int, sequence: int, payload: bytes) -> bytes:
    head = _HEAD.pack(MAGIC, VERSION, kind, len(payload), sequence)
    return head + _CRC.pack(crc32(payload, crc32(head))) + payload


def pack_frame_into(buffer: Buffer, at: int, kind: int, sequence: int, payload: bytes) -> None:
    """The same frame, stored at ``at``; the head last, so that a frame cut off there has none."""
    length = len(payload)
    head = _HEAD.pack(MAGIC, VERSION, kind, length, sequence)
    begin = at + FRAME_HEAD_BYTES
    buffer[begin : begin + length] = payload
    buffer[at:begin] = head + _CRC.pack(crc32(payload, crc32(head)))


def pack_marks(sequences: Iterable[int]) -> bytes:
    numbers = list(sequences)
    return Struct(f"<{len(numbers)}Q").pack(*numbers)


def unpack_marks(payload: bytes) -> tuple[int, ...]:
    return Struct(f"<{len(payload) // 8}Q").unpack_from(payload)


def read_frames(data: bytes, start: int = 0, after: int = 0) -> Iterator[Frame]:
    """Whole frames from ``start`` on, while sequences rise above ``after``.

    Stops at the first frame that is cut, fails its checksum or repeats a sequence: what follows
    such a frame was never acknowledged as a whole.
    """
    at, last = start, after
    while at + FRAME_HEAD_BYTES <= len(data):
        magic, version, kind, length, sequence = _HEAD.unpack_from(data, at)
        begin = at + FRAME_HEAD_BYTES
        if magic != MAGIC or version != VERSION or length > PAYLOAD_BYTES_MAX or sequence <= last:
            return
        payload = data[begin : begin + length]
        check = crc32(payload, crc32(data[at : at + _HEAD.size]))
        if len(payload) < length or check != _CRC.unpack_from(data, at + _HEAD.size)[0]:
            return
        yield Frame(kind, sequence, payload, at, begin + length)
        at, last = begin + length, sequence


def read_segment(data: bytes) -> Iterator[Frame]:
    """All whole frames of one segment's bytes."""
    return read_frames(data)


def is_clean(data: bytes, end: int) -> bool:
    """Nothing but zeros after ``end``: no frame was begun there."""
    return data.count(0, end) == len(data) - end
