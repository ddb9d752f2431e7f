"""A power cut at any byte of the journal, with the board of any earlier moment: nothing is invented,
nothing doubled, and what the files still say is kept. The whole product runs in
``loadtests/power_cut.py``; here every byte with a few boards, and every board at each frame's edges.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gateway.metering import frames, recovery, slots
from gateway.metering.backlog import Backlog
from tests.support.power import SEGMENT_BYTES, History, Pictures, every_picture, history


@pytest.fixture
def past(data_dir: Path) -> History:
    return history(data_dir)


async def any_wrong(
    past: History, data_dir: Path, boards: Iterable[int], cuts: Iterable[int] | None = None
) -> str:
    """The first thing wrong with any picture of those boards, at every byte of the journal."""
    pictures = Pictures(past, data_dir)
    every_cut = range(past.written + 1) if cuts is None else cuts
    for picture in every_picture(past, boards, every_cut):
        for line in await pictures.wrong_with(picture):
            return f"{picture}: {line}"
    return ""


def test_the_history_has_what_a_power_cut_can_hurt(data_dir: Path) -> None:
    past = history(data_dir, 3)
    assert len(past.boards) > 50
    assert len(past.records) == 3
    assert past.written > SEGMENT_BYTES  # it turned


async def test_every_byte_of_the_journal(past: History, data_dir: Path) -> None:
    boards = [*range(0, len(past.boards), 5), len(past.boards) - 1]
    assert await any_wrong(past, data_dir, boards) == ""


async def test_every_earlier_board(past: History, data_dir: Path) -> None:
    ends = [end for *_, end, _ in past.records]
    boards = range(len(past.boards))
    assert await any_wrong(past, data_dir, boards, (0, ends[0], ends[1] - 1)) == ""


def skip_the_checksum_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_CRC", _Whatever)


def skip_the_checksums_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "crc32", lambda *_: _Whatever())


class _Whatever:
    """A checksum that equals any other."""

    size = 4

    @classmethod
    def unpack_from(cls, *_: object) -> tuple["_Whatever"]:
        return (cls(),)

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def forget_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backlog, "request_ids", lambda _: set())


def forget_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_self: object, _ids: list[str]) -> set[str]:
        return set()

    monkeypatch.setattr("tests.support.ledgers.Ledger.known", nothing)


def record_what_was_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "SlotState", _NoneReserved)


class _NoneReserved:
    RESERVING = RESERVED = -1


@pytest.mark.parametrize(
    "fault",
    [
        forget_the_journal,
        forget_the_ledger,
        record_what_was_never_sent,
        skip_the_checksum_of_frames,
        skip_the_checksums_of_slots,
    ],
)
async def test_a_fault_in_recovery_is_seen(
    fault: Callable[[pytest.MonkeyPatch], None],
    past: History,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    assert await any_wrong(past, data_dir, range(len(past.boards)), range(0, past.written, 7))
