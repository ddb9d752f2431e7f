"""The journal's frames as bytes: packed one at a time, read until the first that is not whole.

Pure. A torn tail is normal (a kill in mid-write, a power cut), so reading never raises; a reader
that wants to know whether the tail is clean asks ``is_clean``. The frame (length, sequence,
checksum, payload) is the write-ahead log's, as in LevelDB's log format, without its blocks.

    0 magic 0xF7   1 version   2 kind   3 zero   4 length u32   8 sequence u64
    16 payload, and after it the crc32 (u32) of all before it; integers little-endian

Version 1, of the first release, is still read: it had the checksum before the payload.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from zlib import crc32

import msgspec

MAGIC = 0xF7
VERSION = 2
FIRST_VERSION = 1
#: The first four bytes are one number: magic and version, and the kind above them.
_KIND_SHIFT = 16
MAGIC_OF = tuple(MAGIC | VERSION << 8 | kind << _KIND_SHIFT for kind in range(256))
_HEAD = Struct("<IIQ")
_CRC = Struct("<I")
pack_head, pack_crc = _HEAD.pack, _CRC.pack
FRAME_HEAD_BYTES = _HEAD.size
#: Of a frame beside its payload.
FRAME_EXTRA_BYTES = FRAME_HEAD_BYTES + _CRC.size
PAYLOAD_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = FRAME_EXTRA_BYTES + PAYLOAD_BYTES_MAX


class FrameKind(IntEnum):
    """What the payload is. Records, releases and settles each wait for a mark."""

    RECORD = 1  # an encoded UsageRecord, to ship and to settle
    MARKS = 2  # sequences (u64 each) whose settle or release was acknowledged
    RELEASE = 3  # a Release: give a reservation back, no record
    SETTLE = 4  # a Settlement whose record is in the ledger already


class Frame(msgspec.Struct, frozen=True):
    """A whole frame; its payload begins at ``payload_at`` and it ends at ``end``, in bytes from the
    segment's start.
    """

    kind: int
    sequence: int
    payload: bytes
    payload_at: int
    end: int


class Release(msgspec.Struct, frozen=True, array_like=True):
    tag: str
    reservation_id: str


def pack_frame(kind: int, sequence: int, payload: bytes) -> bytes:
    """One frame. Its checksum comes last and in one call: a frame cut off anywhere has none."""
    body = pack_head(MAGIC_OF[kind], len(payload), sequence) + payload
    return body + pack_crc(crc32(body))


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
    while at + FRAME_EXTRA_BYTES <= len(data):
        first, length, sequence = _HEAD.unpack_from(data, at)
        if first & 0xFF0000FF != MAGIC or length > PAYLOAD_BYTES_MAX or sequence <= last:
            return
        end = at + FRAME_EXTRA_BYTES + length
        version = first >> 8 & 0xFF
        if end > len(data) or not _is_whole(data, at, end, version):
            return
        begin = at + FRAME_HEAD_BYTES + (_CRC.size if version == FIRST_VERSION else 0)
        kind = first >> _KIND_SHIFT & 0xFF
        yield Frame(kind, sequence, data[begin : begin + length], begin, end)
        at, last = end, sequence


def _is_whole(data: bytes, at: int, end: int, version: int) -> bool:
    """The frame in those bytes has its checksum."""
    if version == VERSION:
        check_at = end - _CRC.size
        return bool(crc32(data[at:check_at]) == _CRC.unpack_from(data, check_at)[0])
    check_at = at + FRAME_HEAD_BYTES
    if version != FIRST_VERSION:
        return False
    check = crc32(data[check_at + _CRC.size : end], crc32(data[at:check_at]))
    return bool(check == _CRC.unpack_from(data, check_at)[0])


def read_segment(data: bytes) -> Iterator[Frame]:
    """All whole frames of one segment's bytes."""
    return read_frames(data)


def is_clean(data: bytes, end: int) -> bool:
    """Nothing but zeros after ``end``: no frame was begun there."""
    return data.count(0, end) == len(data) - end
