"""The journal: sequences, turns, marks, syncs, and a disk that is full."""

import errno
import os
import threading
from pathlib import Path

import pytest

from gateway.metering.frames import Frame, FrameKind, unpack_marks
from gateway.metering.journal import Journal, JournalFull, read_segment, segment_paths
from tests.support.until import wait_until

SEGMENT = 16_384
PAYLOAD = b"p" * 1_000


def frames(folder: Path) -> list[Frame]:
    return [frame for path in segment_paths(folder) for frame in read_segment(path.read_bytes())]


def records(folder: Path) -> list[bytes]:
    return [frame.payload for frame in frames(folder) if frame.kind == FrameKind.RECORD]


class Disk:
    """posix_fallocate with a switch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._real = os.posix_fallocate
        monkeypatch.setattr(os, "posix_fallocate", self._allocate)

    def _allocate(self, descriptor: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._real(descriptor, offset, length)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_what_append_returned_for_is_in_the_file_at_once(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    assert [journal.append(b"one"), journal.append(b"two")] == [1, 2]
    assert records(data_dir) == [b"one", b"two"]
    journal.close()


def test_frames_fill_one_segment_after_another_and_one_is_always_ahead(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    sequences = [journal.append(PAYLOAD) for _ in range(100)]
    assert sequences == list(range(1, 101))
    wait_until(lambda: len(segment_paths(data_dir)) == 8)  # 16 a segment: 7 with frames, 1 ahead
    assert [frame.sequence for frame in frames(data_dir)] == sequences
    assert journal.admitting
    assert journal.bytes_used == 6 * SEGMENT + 4 * 1_020
    journal.close()


def test_marks_are_written_with_the_next_group_of_frames(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT, background=False)
    for _ in range(3):
        journal.mark_settled(journal.append(b"x"))
    assert len(frames(data_dir)) == 3  # one group, which began before there was a mark
    journal.flush()
    journal.mark_settled(journal.append(b"x"))
    journal.flush()
    journal.append(b"x")
    journal.mark_settled(2**40)
    journal._sync()
    journal.append(b"x")
    journal.close()
    found = [
        unpack_marks(each.payload) for each in frames(data_dir) if each.kind == FrameKind.MARKS
    ]
    assert found == [(1, 2, 3), (5,), (2**40,)]
    assert frames(data_dir)[-1].kind == FrameKind.MARKS


def test_marks_are_written_when_asked_and_so_many_a_frame(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT, background=False)
    for sequence in range(1, 301):
        journal.mark_settled(sequence)
    journal.write_marks()
    first, second = frames(data_dir)
    assert unpack_marks(first.payload) + unpack_marks(second.payload) == tuple(range(1, 301))
    assert len(unpack_marks(first.payload)) == 256
    journal.close()


def test_closing_writes_the_marks_and_is_safe_to_repeat(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    journal.mark_settled(journal.append(b"x"))
    journal.close()
    journal.close()
    assert [frame.kind for frame in frames(data_dir)] == [FrameKind.RECORD, FrameKind.MARKS]


def test_a_write_is_synced_without_being_asked(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    real = os.fdatasync

    def watched(descriptor: int) -> None:
        real(descriptor)
        synced.set()

    journal = Journal(data_dir, SEGMENT)
    monkeypatch.setattr(os, "fdatasync", watched)
    journal.append(b"x")
    assert synced.wait(1.0)
    journal.close()


def test_a_disk_that_fails_to_sync_ends_admission(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdatasync

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(data_dir, SEGMENT)
    monkeypatch.setattr(os, "fdatasync", broken)
    journal.append(b"x")
    wait_until(lambda: not journal.admitting)
    monkeypatch.setattr(os, "fdatasync", real)
    journal.append(b"y")  # what is in flight is still written
    journal.close()
    assert records(data_dir) == [b"x", b"y"]


def test_a_full_disk_refuses_creation_and_leaves_no_file(data_dir: Path, disk: Disk) -> None:
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        Journal(data_dir, SEGMENT)
    assert segment_paths(data_dir) == []


def test_a_full_disk_ends_admission_a_segment_before_records_would_be_lost(
    data_dir: Path, disk: Disk
) -> None:
    journal = Journal(data_dir, SEGMENT)
    disk.full = True
    for _ in range(17):  # the 17th turns to the segment that was allocated ahead
        journal.append(PAYLOAD)
    wait_until(lambda: not journal.admitting)
    for _ in range(15):
        journal.append(PAYLOAD)
    with pytest.raises(JournalFull):
        journal.append(PAYLOAD)
    journal.mark_settled(1)  # finds no room either, and waits
    disk.full = False
    wait_until(lambda: journal.admitting)
    assert journal.append(b"again") == 33
    journal.close()
    assert len(records(data_dir)) == 33
    assert frames(data_dir)[-1].kind == FrameKind.MARKS


def test_the_moment_of_a_turn_refuses_nobody(data_dir: Path, disk: Disk) -> None:
    journal = Journal(data_dir, SEGMENT, background=False)  # nobody allocates ahead in time
    for _ in range(60):
        journal.append(PAYLOAD)
        assert journal.admitting
    journal.close()


def test_a_resumed_journal_goes_on_after_a_clean_tail(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    journal.append(b"one")
    journal.close()
    again = Journal.resume(data_dir)
    assert again.append(b"two") == 2
    again.close()
    assert len(segment_paths(data_dir)) == 2
    assert records(data_dir) == [b"one", b"two"]


def test_a_resumed_journal_never_writes_over_a_torn_tail(data_dir: Path, disk: Disk) -> None:
    journal = Journal(data_dir, SEGMENT)
    journal.append(b"one")
    os.pwrite(journal._descriptor, b"\xf7\1\1", journal._position)
    journal.close()
    first = segment_paths(data_dir)[0].read_bytes()
    disk.full = True  # the segment allocated ahead is enough
    again = Journal.resume(data_dir)
    assert again.append(b"two") == 2
    again.close()
    assert segment_paths(data_dir)[0].read_bytes() == first
    assert records(data_dir) == [b"one", b"two"]
    third = Journal.resume(data_dir)
    assert third.append(b"three") == 3
    third.close()
    assert records(data_dir) == [b"one", b"two", b"three"]


def test_a_resumed_journal_uses_no_sequence_again_that_was_shipped(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    journal.append(b"one")
    journal.close()
    again = Journal.resume(data_dir, after=500)
    assert again.append(b"two") == 501
    again.close()


def test_an_empty_folder_can_be_resumed(data_dir: Path) -> None:
    journal = Journal.resume(data_dir, segment_bytes=SEGMENT)
    assert journal.append(b"one") == 1
    journal.close()
    assert records(data_dir) == [b"one"]


def test_a_frame_larger_than_any_segment_is_the_callers_error(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT)
    with pytest.raises(ValueError, match="fits no segment"):
        journal.append(bytes(SEGMENT))
    journal.close()
