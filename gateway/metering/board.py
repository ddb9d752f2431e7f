"""The in-flight board: 256 bytes a request, in a file that outlives the process that maps it.

A store into a shared mapping is in the page cache at once, so ``kill -9`` loses none of them and
they appear in the order they were made. Every block is therefore written before the one byte that
makes it true (the state), and what may be half written carries a checksum with the slot's
generation. The alternating halves of progress are the old trick of two superblocks: one is always
whole. Not here: the steps of one slot (``pen``), what a slot found after a death means (``recovery``),
nor anything of SQL.
"""

import mmap
import os
from pathlib import Path
from struct import Struct
from zlib import crc32

from gateway.metering.pen import Slot
from gateway.metering.slots import CRC, SLOT_BYTES, SlotImage, Torn, decode_slot

__all__ = ["Board", "Slot", "SlotImage", "Torn", "find_slot", "free_slot", "read_board"]

#: The slots begin on a page of their own.
HEADER_BYTES = 4096
MAGIC = b"TFBOARD\x02"
#: Of boards that the first release made: still read, never written.
FIRST_MAGIC = b"TFBOARD\x01"
_HEADER = Struct("<8sIII")


class Board:
    """The file and its free list. One per incarnation; used by one thread.

    ``free``: slots to be had; a claim takes the last one freed, whose page is warm.
    """

    def __init__(self, path: Path, slots: int) -> None:
        """Create the file, all of it allocated: a full disk fails here and never as SIGBUS.

        Raises ``OSError`` when the space cannot be had, ``FileExistsError`` when there is one.
        """
        size = HEADER_BYTES + slots * SLOT_BYTES
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self.map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        _HEADER.pack_into(self.map, 0, MAGIC, SLOT_BYTES, slots, _header_check(slots))
        self.slots = slots
        self.free: list[Slot] = []
        self.free.extend(
            Slot(self.map, HEADER_BYTES + index * SLOT_BYTES, index, self.free)
            for index in reversed(range(slots))
        )

    @property
    def in_use(self) -> int:
        return self.slots - len(self.free)

    def claim(self) -> Slot | None:
        """A free slot, or None when all are taken."""
        if not self.free:
            return None
        slot = self.free.pop()
        slot.claimed = True
        return slot

    def close(self) -> None:
        """Unmap. Slots still claimed stay as they are, for recovery."""
        self.map.close()


def read_board(path: Path) -> list[SlotImage | Torn]:
    """Every slot in use. Raises ``ValueError`` when the file is no board, ``OSError``."""
    data = path.read_bytes()
    if len(data) < HEADER_BYTES:
        raise ValueError(f"{path.name} has {len(data)} bytes, a board at least {HEADER_BYTES}")
    magic, slot_bytes, slots, check = _HEADER.unpack_from(data)
    right = slot_bytes == SLOT_BYTES and check == _header_check(slots, magic)
    if magic not in (MAGIC, FIRST_MAGIC) or not right:
        raise ValueError(f"{path.name} is no board of this version")
    found: list[SlotImage | Torn] = []
    for index in range(slots):
        at = HEADER_BYTES + index * SLOT_BYTES
        if data[at]:
            of_first = magic == FIRST_MAGIC
            image = decode_slot(data[at : at + SLOT_BYTES], index, of_first=of_first)
            if image is not None:
                found.append(image)
    return found


def find_slot(path: Path, request_id: str) -> SlotImage | None:
    """The slot in use of one request; None when there is none, or no board. Reads the whole file.

    ``request_id``: 32 hexadecimal digits.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    wanted = bytes.fromhex(request_id)
    at = data.find(wanted, HEADER_BYTES)
    while at >= 0:
        index = (at - HEADER_BYTES) // SLOT_BYTES
        base = HEADER_BYTES + index * SLOT_BYTES
        image = decode_slot(data[base : base + SLOT_BYTES], index)
        if isinstance(image, SlotImage) and image.request_id == request_id:
            return image
        at = data.find(wanted, at + 1)
    return None


def free_slot(path: Path, index: int) -> None:
    """Free a slot of a dead owner's board: one byte, so never half done."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, b"\0", HEADER_BYTES + index * SLOT_BYTES)
    finally:
        os.close(descriptor)


def _header_check(slots: int, magic: bytes = MAGIC) -> int:
    return crc32(magic + CRC.pack(slots))
