"""Files of a life as the first release left them, made from those of today: what a host holds that was
killed and upgraded.
"""

from pathlib import Path
from struct import Struct
from zlib import crc32

import msgspec

from gateway.metering.board import FIRST_MAGIC, HEADER_BYTES
from gateway.metering.frames import Frame, FrameKind, read_segment
from gateway.metering.journal import segment_paths
from gateway.metering.slots import (
    COUNTS,
    CRC,
    ENDED,
    ENDED_AT,
    EPOCH_AT,
    HALF,
    HALVES_AT,
    SLOT_BYTES,
)
from quotas.record import UsageRecord, decode


def age(folder: Path) -> None:
    """Rewrite board and journal in place."""
    board = bytearray((folder / "board").read_bytes())
    board[:8] = FIRST_MAGIC
    (slots,) = Struct("<I").unpack_from(board, 12)
    CRC.pack_into(board, 16, crc32(FIRST_MAGIC + CRC.pack(slots)))
    for at in range(HEADER_BYTES, len(board), SLOT_BYTES):
        board[at : at + SLOT_BYTES] = _slot(board[at : at + SLOT_BYTES])
    (folder / "board").write_bytes(board)
    for path in segment_paths(folder):
        data = path.read_bytes()
        written = b"".join(_frame(frame) for frame in read_segment(data))
        path.write_bytes(written.ljust(len(data), b"\0"))


def payload_of_first(record: UsageRecord) -> bytes:
    """The record as version 1 wrote it."""
    made = {name: getattr(record, name) for name in record.__struct_fields__}
    for name in ("epoch", "charged"):
        del made[name]
    return msgspec.msgpack.encode({**made, "v": 1, "settlement": record.settlement})


def _slot(data: bytearray) -> bytearray:
    """Whole blocks get a checksum of that time; what was torn stays torn."""
    (generation,) = CRC.unpack_from(data, 4)
    salt = crc32(CRC.pack(generation))
    blocks = [(EPOCH_AT, EPOCH_AT + 24), (ENDED_AT, ENDED_AT + ENDED.size)]
    blocks += [(at, at + COUNTS.size) for at in (HALVES_AT, HALVES_AT + HALF.size)]
    for begin, end in blocks:
        text = bytes(data[begin:end])
        if begin == EPOCH_AT:
            text = text.rstrip(b"\0")
        if crc32(text, generation) == CRC.unpack_from(data, end)[0]:
            CRC.pack_into(data, end, crc32(text, salt))
    return data


def _frame(frame: Frame) -> bytes:
    payload = frame.payload
    if frame.kind == FrameKind.RECORD:
        payload = payload_of_first(decode(payload))
    head = Struct("<BBBxIQ").pack(0xF7, 1, frame.kind, len(payload), frame.sequence)
    return head + CRC.pack(crc32(payload, crc32(head))) + payload
