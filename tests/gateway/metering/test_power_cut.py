"""A power cut at any byte of the journal, with the board of any earlier moment: nothing is invented,
nothing doubled, and what the files still say is kept. The whole product runs in
``loadtests/power_cut.py``; here every byte with a few boards, and every board at each frame's edges.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.metering import recovery
from gateway.metering.backlog import Backlog
from gateway.metering.frames import read_segment
from tests.support.power import History, Picture, every_picture, history, wrong_with


@pytest.fixture
def past(data_dir: Path) -> History:
    return history(data_dir)


async def all_wrong(past: History, pictures: list[Picture], data_dir: Path) -> list[str]:
    found = []
    for picture in pictures:
        found += [f"{picture}: {line}" for line in await wrong_with(past, picture, data_dir)]
        shutil.rmtree(data_dir / "run", ignore_errors=True)
    return found


def edges(past: History) -> list[int]:
    """A byte before, at and after each end of a frame, and the middles."""
    ends = [0, *(frame.end for frame in read_segment(past.journal))]
    middles = [(left + right) // 2 for left, right in itertools.pairwise(ends)]
    return sorted({cut for end in ends for cut in (end - 1, end, end + 1) if cut >= 0} | {*middles})


def test_the_history_has_what_a_power_cut_can_hurt(past: History) -> None:
    assert len(past.boards) > 35
    assert len(past.records) == 2
    assert past.written > 800


async def test_every_byte_of_the_journal(past: History, data_dir: Path) -> None:
    boards = [len(past.boards) * part // 4 for part in range(4)] + [len(past.boards) - 1]
    pictures = []
    for cut in range(past.written + 1):
        shipped = cut // len(boards) % (len(past.records) + 1)
        pictures.append(Picture(boards[cut % len(boards)], cut, shipped, shipped > cut % 2))
    assert await all_wrong(past, pictures, data_dir) == []


async def test_every_earlier_board_at_the_edges_of_frames(past: History, data_dir: Path) -> None:
    pictures = list(every_picture(past, range(len(past.boards)), edges(past)))[::7]
    assert await all_wrong(past, pictures, data_dir) == []


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
    "fault", [forget_the_journal, forget_the_ledger, record_what_was_never_sent]
)
async def test_a_fault_in_recovery_is_seen(
    fault: Callable[[pytest.MonkeyPatch], None],
    past: History,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    pictures = list(every_picture(past, range(0, len(past.boards), 2), edges(past)))[::7]
    assert await all_wrong(past, pictures, data_dir) != []
