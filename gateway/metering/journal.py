"""The journal of one data process: records appended to preallocated segments, synced in groups.

A segment is mapped: ``append`` is a copy into the page cache, so a killed process loses none, it is
no system call, and it never waits for the thread that calls fdatasync some milliseconds later for all
of them together (group commit: Gawlick and Kinkade, "Varieties of Concurrency Control in IMS/VS Fast
Path", 1985). Every block is allocated before, so a full disk is no SIGBUS. It is also the outbox of settlement:
what is appended waits for a mark. One segment is always allocated ahead; when that fails,
``admitting`` says so while there is still room for what is in flight. Not here: what a payload
means, shipping, freeing segments.
"""

import contextlib
import logging
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from zlib import crc32

from gateway.metering.frames import (
    FRAME_BYTES_MAX,
    MAGIC_OF,
    FrameKind,
    is_clean,
    pack_crc,
    pack_head,
    pack_marks,
    read_segment,
)
from gateway.metering.segments import allocate, number_of, segment_paths

__all__ = ["SEGMENT_BYTES", "Journal", "JournalFull", "read_segment", "segment_paths"]

SEGMENT_BYTES = 4 << 20
#: Writes gather this long before their fdatasync begins (promised: <= 10 ms).
GATHER_S = 0.004
#: Of one frame.
MARKS_MAX = 256
_RECORD = int(FrameKind.RECORD)
#: A full disk is asked again this often.
RETRY_S = 0.5

_log = logging.getLogger(__name__)


class JournalFull(Exception):
    """No room for the frame, and no next segment to be had. What was to be written is not."""


class Journal:
    """Appends from one thread, syncs from its own. ``background=False``: the owner calls ``flush``.

    ``admitting`` False: the next segment could not be had (or a sync failed), so admit nothing more.
    ``mark_settled(sequence)``: the settle (or release) of that frame was acknowledged; any thread may
    say so. Marks are written with the next group of frames, or by ``write_marks``.

    Raises ``OSError`` on creation when the first two segments cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        segment_bytes: int = SEGMENT_BYTES,
        *,
        background: bool = True,
        resume_after: int | None = None,
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._files = threading.Lock()  # which of them are to be synced; appending needs no lock
        self._allocating = threading.Lock()  # the next segment
        self._wake: SimpleQueue[None] = SimpleQueue()  # in C: an Event is nine calls to set
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._descriptor = -1
        self._map: mmap.mmap | None = None  # of the current segment
        self._ahead = -1
        self._behind: list[int] = []  # full segments, to be synced and closed
        self._segment = 0
        self._position = 0
        self._limit = 0
        self._sequence = resume_after or 0
        self._dirty = False
        self._starved = False
        self._failure: OSError | None = None
        self._marks: deque[int] = deque()
        self.mark_settled: Callable[[int], None] = self._marks.append
        self.admitting = True
        try:
            if resume_after is None:
                self._begin()
            else:
                self._find_tail()
        except OSError:
            self._let_go()
            raise
        if background:
            self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
            self._thread.start()

    @classmethod
    def resume(cls, folder: Path, after: int = 0, segment_bytes: int = SEGMENT_BYTES) -> "Journal":
        """Go on with a dead owner's journal, without a thread. The caller holds the folder's lock.

        A torn tail is never written over: frames then begin in the next segment. ``after``: a
        sequence known to have been used, should the tail that used it be lost.
        """
        return cls(folder, segment_bytes, background=False, resume_after=after)

    @property
    def bytes_used(self) -> int:
        """Bytes of frames in the segments that are still there."""
        total = self._position
        for path in segment_paths(self._folder):
            if number_of(path) < self._segment:
                with contextlib.suppress(FileNotFoundError):  # freed meanwhile
                    total += path.stat().st_size
        return total

    def append(self, payload: bytes, kind: int = _RECORD) -> int:
        """Write one frame; its sequence. Raises ``JournalFull``, and then nothing was written."""
        sequence = self._sequence + 1
        body = pack_head(MAGIC_OF[kind], len(payload), sequence) + payload
        frame = body + pack_crc(crc32(body))  # pack_frame, without the call
        size, at = len(frame), self._position
        end = at + size
        if end > self._limit or size > FRAME_BYTES_MAX:
            at = self._make_room(size)
            end = at + size
        self._map[at:end] = frame  # type: ignore[index]  # mapped, where there is room
        self._position = end
        self._sequence = sequence
        if not self._dirty:  # a group begins
            self._dirty = True
            self._wake.put(None)
            if self._marks:
                self.write_marks()
        return sequence

    def write_marks(self) -> None:
        """Those that came since. Without room they wait: an unmarked settle is repeated, which does no
        harm.
        """
        marks = self._marks
        while marks:
            if len(marks) <= MARKS_MAX:
                written = list(marks)
                marks.clear()
            else:
                written = [marks.popleft() for _ in range(MARKS_MAX)]
            try:
                self.append(pack_marks(written), FrameKind.MARKS)
            except JournalFull:
                marks.extendleft(reversed(written))
                return

    def flush(self) -> None:
        """Marks written and everything synced on return. Raises ``OSError`` when the disk fails."""
        self.write_marks()
        self._sync()

    def close(self) -> None:
        """Stop the thread, flush, let go of the files. Safe to repeat."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        finally:
            self._let_go()

    def _unmap(self) -> None:
        """What was stored is the kernel's already; fdatasync finds it through the descriptor."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _let_go(self) -> None:
        self._unmap()
        for descriptor in (self._descriptor, self._ahead, *self._behind):
            if descriptor >= 0:
                os.close(descriptor)

    def _begin(self) -> None:
        self._ahead = self._allocate()
        self._turn()
        self._ahead = self._allocate()

    def _make_room(self, size: int) -> int:
        """Where the frame goes: the beginning of a later segment."""
        if size > min(self._segment_bytes, FRAME_BYTES_MAX):
            raise ValueError(f"a frame of {size} bytes fits no segment")
        while self._position + size > self._limit:
            self._turn()
        return self._position

    def _turn(self) -> None:
        """The segment ahead becomes the current one. Raises ``JournalFull``, changing nothing."""
        with self._allocating:
            if self._ahead < 0:
                try:
                    self._ahead = self._allocate()
                except OSError as error:
                    self._starve(starved=True)
                    raise JournalFull("no next segment to be had") from error
            try:
                fresh = mmap.mmap(self._ahead, 0)
            except OSError as error:
                raise JournalFull(f"the next segment cannot be mapped: {error.strerror}") from error
            self._unmap()
            self._map = fresh
            with self._files:
                if self._descriptor >= 0:
                    self._behind.append(self._descriptor)
                self._descriptor, self._ahead = self._ahead, -1
        self._segment += 1
        self._position = 0
        self._limit = len(fresh)
        self._wake.put(None)

    def _allocate(self, *, written: bool = False) -> int:
        """The segment after the current one."""
        path = self._folder / f"journal-{self._segment + 1:06d}.seg"
        return allocate(path, self._segment_bytes, written=written)

    def _find_tail(self) -> None:
        """Where a resumed journal goes on: after the last whole frame, or in the next segment."""
        for path in segment_paths(self._folder):
            data = path.read_bytes()
            last = None
            for last in read_segment(data):  # noqa: B007 -- the last one is what is wanted
                pass
            if self._descriptor >= 0 and is_clean(data, 0):
                continue  # allocated ahead and never used
            if self._descriptor >= 0:
                os.close(self._descriptor)
            end = last.end if last else 0
            self._unmap()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._map = mmap.mmap(self._descriptor, 0) if data else None
            self._segment = number_of(path)
            self._limit = len(data)
            self._position = end if is_clean(data, end) else self._limit
            self._sequence = max(self._sequence, last.sequence if last else 0)

    def _sync(self) -> None:
        self._dirty = (
            False  # before the files are looked at: what is stored from here on begins a group
        )
        with self._files:
            behind, self._behind = self._behind, []
            current = self._descriptor
        for descriptor in behind:
            os.fdatasync(descriptor)
            os.close(descriptor)
        if current >= 0:
            os.fdatasync(current)

    def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(Empty):
                self._wake.get(timeout=RETRY_S if self._starved else None)
            if self._closing.wait(GATHER_S):
                return
            while not self._wake.empty():  # said before what follows looks: it is of this group
                self._wake.get_nowait()
            try:
                if self._dirty:
                    self._sync()
            except OSError as error:
                # What the kernel failed to write it may have forgotten: only a new process may go on.
                self._failure = error
                self.admitting = False
                _log.error("the journal cannot be synced: %s", error.strerror)
            self._allocate_ahead()

    def _allocate_ahead(self) -> None:
        with self._allocating:
            if self._ahead < 0:
                try:
                    self._ahead = self._allocate(written=True)
                except OSError as error:
                    if not self._starved:
                        _log.error("no next journal segment: %s; refusing requests", error.strerror)
            self._starve(starved=self._ahead < 0)

    def _starve(self, *, starved: bool) -> None:
        """Under the lock: whether there is a segment ahead, and so whether to admit."""
        self._starved = starved
        self.admitting = not starved and self._failure is None
