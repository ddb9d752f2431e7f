"""What one incarnation's journal still owes: records to ship, settles and releases to acknowledge.

An index over the folder's segments, brought up to date by reading on from where it stopped; live
journals are read without their lock, since a frame is either whole or not there yet. Payloads stay
on disk until asked for. Segments are freed oldest first, so no mark is ever freed before the frame
it speaks of. Not here: the database, the store, what to do with a dead life's slots.
"""

import contextlib
import os
from collections import deque
from itertools import islice
from pathlib import Path

import msgspec

from gateway.metering.frames import (
    FRAME_BYTES_MAX,
    MAGIC,
    Frame,
    FrameKind,
    Release,
    read_frames,
    unpack_marks,
)
from gateway.metering.segments import number_of, segment_paths
from quotas.ports import Settlement
from quotas.record import request_id_of

SHIPPED = "shipped"
_CHUNK = 256 * 1024


class Entry(msgspec.Struct, frozen=True):
    """A frame that is owed something, and where its payload lies."""

    kind: int
    sequence: int
    segment: int
    offset: int
    length: int


class _Segment:
    """How far a segment was read. ``last``: the newest sequence seen in it, 0 = none."""

    __slots__ = ("last", "number", "path", "read_to")

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.read_to = 0
        self.last = 0


class Backlog:
    """Mutable by ``scan``, ``shipped_to`` and ``free``. One per folder and reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shipped = _read_shipped(folder)  # every record up to this sequence is in the ledger
        self.unshipped: deque[Entry] = deque()
        self.unsettled: dict[int, Entry] = {}
        self._segments: dict[int, _Segment] = {}
        self._tail = 0  # the newest segment with a frame: those before it are complete

    @property
    def bytes_used(self) -> int:
        """Bytes of frames not freed yet."""
        return sum(segment.read_to for segment in self._segments.values())

    def scan(self) -> None:
        """Read what was appended since, in the order of sequences. Raises ``OSError``.

        The owner turns only when it is done with a segment, and may do so between any two reads
        here. So a frame seen in the next segment makes those before it complete, and they are read
        once more before that frame is; a segment seen to be empty is not read in this scan.
        """
        behind: list[_Segment] = []  # the last segment that was read, and empty ones after it
        for path in _paths_without_gap(self.folder):
            number = number_of(path)
            segment = self._segments.setdefault(number, _Segment(number, path))
            if behind and not segment.last:
                if not _has_frame(path):
                    behind.append(segment)
                    continue
                for each in behind:
                    self._read_on(each)
            self._read_on(segment)
            if segment.last:
                self._tail = max(self._tail, number)
            behind = [segment]

    def payload(self, entry: Entry) -> bytes:
        """An owed frame's payload. Raises ``OSError``."""
        descriptor = os.open(self._segments[entry.segment].path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, entry.length, entry.offset)
        finally:
            os.close(descriptor)

    def take(self, count: int, after: int = 0) -> list[tuple[Entry, bytes]]:
        """The oldest unshipped records but the first ``after``, still owed. Raises ``OSError``."""
        taken = []
        with contextlib.ExitStack() as files:
            opened: dict[int, int] = {}
            for entry in islice(self.unshipped, after, after + count):
                if entry.segment not in opened:
                    path = self._segments[entry.segment].path
                    opened[entry.segment] = files.enter_context(path.open("rb", 0)).fileno()
                payload = os.pread(opened[entry.segment], entry.length, entry.offset)
                taken.append((entry, payload))
        return taken

    def shipped_to(self, sequence: int) -> None:
        """Every record up to that sequence is in the ledger: remembered on disk, by a rename.

        Not synced: losing it ships again, and the ledger knows request ids for ever. A sequence
        and not an offset, for a power cut may take the tail that an offset pointed behind.
        """
        while self.unshipped and self.unshipped[0].sequence <= sequence:
            self.unshipped.popleft()
        self.shipped = max(self.shipped, sequence)
        fresh = self.folder / (SHIPPED + ".new")
        fresh.write_text(f"{self.shipped}\n")
        fresh.replace(self.folder / SHIPPED)

    def free(self) -> int:
        """Unlink the segments that owe nothing, oldest first; how many. Never the one in use."""
        freed = 0
        for number in sorted(self._segments):
            if number >= self._tail or self._owes(number):
                break
            self._segments.pop(number).path.unlink(missing_ok=True)
            freed += 1
        return freed

    def request_ids(self) -> set[str]:
        """Of everything the journal holds, owed or not. Reads the whole folder."""
        found = set()
        for path in segment_paths(self.folder):
            for frame in read_frames(path.read_bytes()):
                if (request_id := _request_id(frame)) is not None:
                    found.add(request_id)
        return found

    def _owes(self, number: int) -> bool:
        if self.unshipped and self.unshipped[0].segment <= number:
            return True
        return any(entry.segment <= number for entry in self.unsettled.values())

    def _read_on(self, segment: _Segment) -> None:
        """Read frames until one is not whole; a chunk that ends inside a frame is read again."""
        with segment.path.open("rb", buffering=0) as file:
            size = _CHUNK
            while True:
                base = segment.read_to
                data = os.pread(file.fileno(), size, base)
                for frame in read_frames(data, after=segment.last):
                    self._note(segment.number, frame, base)
                    segment.last = frame.sequence
                    segment.read_to = base + frame.end
                if len(data) < size or (size > _CHUNK and segment.read_to == base):
                    return
                # The largest frame is longer than a chunk: look once more, further.
                size = _CHUNK if segment.read_to > base else FRAME_BYTES_MAX

    def _note(self, number: int, frame: Frame, base: int) -> None:
        if frame.kind == FrameKind.MARKS:
            for sequence in unpack_marks(frame.payload):
                self.unsettled.pop(sequence, None)
            return
        at, length = base + frame.payload_at, len(frame.payload)
        entry = Entry(frame.kind, frame.sequence, number, at, length)
        self.unsettled[frame.sequence] = entry
        if frame.kind == FrameKind.RECORD and frame.sequence > self.shipped:
            self.unshipped.append(entry)


_release = msgspec.msgpack.Decoder(Release)
_settlement = msgspec.msgpack.Decoder(Settlement)


def _request_id(frame: Frame) -> str | None:
    try:
        if frame.kind == FrameKind.RECORD:
            return request_id_of(frame.payload)
        if frame.kind == FrameKind.RELEASE:
            return _release.decode(frame.payload).reservation_id
        if frame.kind == FrameKind.SETTLE:
            return _settlement.decode(frame.payload).reservation_id
    except msgspec.MsgspecError:  # of a newer version: the shipper reports it
        pass
    return None


def _paths_without_gap(folder: Path) -> list[Path]:
    """A listing made while a segment appears may miss it and hold the one after it: list again."""
    paths = segment_paths(folder)
    if paths and number_of(paths[-1]) - number_of(paths[0]) >= len(paths):
        paths = segment_paths(folder)
    return paths


def _has_frame(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        begun = file.read(1) == bytes((MAGIC,))  # most often it is still all zeros
        return begun and any(read_frames(os.pread(file.fileno(), FRAME_BYTES_MAX, 0)))


def _read_shipped(folder: Path) -> int:
    try:
        text = (folder / SHIPPED).read_text()
    except FileNotFoundError:
        return 0
    return int(text) if text.strip().isdigit() else 0
