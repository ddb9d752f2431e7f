"""Reading a journal on, while its owner writes: in order, nothing skipped, large frames too."""

from pathlib import Path

import pytest

from gateway.metering import backlog as backlog_module
from gateway.metering.backlog import Backlog
from gateway.metering.frames import FrameKind
from gateway.metering.journal import Journal, segment_paths

SEGMENT = 16_384
PAYLOAD = b"p" * 1_000


def sequences(backlog: Backlog) -> list[int]:
    return [entry.sequence for entry in backlog.unshipped]


@pytest.mark.parametrize("moment", ["after reading", "after finding nothing ahead"])
@pytest.mark.parametrize("count", [20, 40])
def test_what_is_written_behind_the_readers_back_is_read_before_what_follows_it(
    moment: str, count: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner fills the segment just read and turns, once or twice, before the next is read."""
    journal = Journal(data_dir, SEGMENT)
    journal.append(PAYLOAD)
    reader = Backlog(data_dir)
    owed = [count]

    def write() -> None:
        while owed[0]:
            owed[0] -= 1
            journal.append(PAYLOAD)

    real_read, real_look = Backlog._read_on, backlog_module._has_frame

    def read(self: Backlog, segment: object) -> None:
        real_read(self, segment)  # type: ignore[arg-type]
        write()

    def look(path: Path) -> bool:
        found = real_look(path)
        write()
        return found

    if moment == "after reading":
        monkeypatch.setattr(Backlog, "_read_on", read)
    else:
        monkeypatch.setattr(backlog_module, "_has_frame", look)
    for _ in range(3):
        reader.scan()
    assert sequences(reader) == list(range(1, count + 2))
    journal.close()


def test_a_mark_settles_and_the_segment_in_use_is_never_freed(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT, background=False)
    for _ in range(20):
        journal.mark_settled(journal.append(PAYLOAD))
    backlog = Backlog(data_dir)
    backlog.scan()
    assert len(backlog.unsettled) == 20
    journal.flush()
    backlog.scan()
    assert backlog.unsettled == {}
    assert backlog.free() == 0  # settled, and not shipped
    backlog.shipped_to(20)
    assert backlog.free() == 1
    assert backlog.free() == 0
    assert len(segment_paths(data_dir)) >= 1
    journal.close()


def test_frames_longer_than_a_chunk_are_read(data_dir: Path) -> None:
    journal = Journal(data_dir, 4 << 20, background=False)
    payloads = [b"s", b"L" * 900_000, b"m" * 300_000, b"t"]
    for payload in payloads:
        journal.append(payload)
    backlog = Backlog(data_dir)
    backlog.scan()
    assert [payload for _, payload in backlog.take(10)] == payloads
    assert [payload for _, payload in backlog.take(2)] == payloads[:2]
    journal.close()


def test_what_was_shipped_is_remembered_by_another_reader(data_dir: Path) -> None:
    journal = Journal(data_dir, SEGMENT, background=False)
    for _ in range(5):
        journal.append(PAYLOAD)
    journal.append(b"release", FrameKind.RELEASE)
    first = Backlog(data_dir)
    first.scan()
    first.shipped_to(3)
    assert sequences(first) == [4, 5]
    second = Backlog(data_dir)
    second.scan()
    assert sequences(second) == [4, 5]
    assert len(second.unsettled) == 6
    journal.close()
