"""Recovery interrupted anywhere, and what a power cut leaves: never twice, never invented."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from gateway.metering import recovery as recovery_module
from gateway.metering.board import read_board
from gateway.metering.incarnation import Incarnation
from gateway.metering.journal import Journal, read_segment, segment_paths
from gateway.metering.recovery import recover
from gateway.metering.shipper import Shipper
from quotas.record import decode
from tests.support.ledgers import Ledger, LedgerAway, Settles, fast_folder
from tests.support.lives import CONTEXT, REQUEST_ID, STEPS, live

NAME = REQUEST_ID.hex()


class Killed(BaseException):
    """Stands for a SIGKILL of the recovering process at a point."""


def crowded(data_dir: Path) -> Path:
    """A dead folder with one open slot for each step of a life."""
    incarnation = Incarnation.create(data_dir / "alive", 0, 32, 65_536)
    try:
        for number, last in enumerate(STEPS):
            for step in live(incarnation, number.to_bytes(16)):
                if step == last:
                    break
        shutil.copytree(incarnation.folder, data_dir / "run" / incarnation.name)
    finally:
        incarnation.close()
    return data_dir / "run" / incarnation.name


def frames_of_requests(folder: Path) -> Counter[tuple[int, str]]:
    """(kind, request id) of every frame that concerns a request."""
    data = [path.read_bytes() for path in segment_paths(folder)]
    found: Counter[tuple[int, str]] = Counter()
    for frame in (frame for each in data for frame in read_segment(each)):
        if frame.kind == 1:
            found[1, decode(frame.payload).request_id] += 1
        elif frame.kind == 3:
            found[3, frame.payload[-32:].decode()] += 1
    return found


def expected_frames() -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    for number, left in enumerate(STEPS.values()):
        name = number.to_bytes(16).hex()
        if left.outcome is not None:
            found[1, name] += 1
        if left.released:
            found[3, name] += 1
    return found


@pytest.mark.parametrize(
    ("operation", "calls"),
    [("append", calls) for calls in (0, 1, 2, 5, 11)]
    + [("flush", 0)]
    + [("free_slot", calls) for calls in (0, 1, 2, 5, 11)],
)
async def test_a_recovery_killed_anywhere_is_finished_by_the_next(
    operation: str, calls: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = crowded(data_dir)
    left = [calls]

    def dying(real):
        def step(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return step

    target = recovery_module if operation == "free_slot" else Journal
    with monkeypatch.context() as patch:
        patch.setattr(target, operation, dying(getattr(target, operation)))
        with pytest.raises(Killed):
            await recover(folder, known=Ledger().known, context=CONTEXT)
    found = await recover(folder, known=Ledger().known, context=CONTEXT)
    assert found is not None
    found.close()
    assert read_board(folder / "board") == []
    assert frames_of_requests(folder) == expected_frames()


async def test_without_the_ledger_nothing_is_decided_and_nothing_is_lost(data_dir: Path) -> None:
    folder = crowded(data_dir)
    ledger = Ledger()
    ledger.away = True
    before = read_board(folder / "board")
    with pytest.raises(LedgerAway):
        await recover(folder, known=ledger.known, context=CONTEXT)
    assert read_board(folder / "board") == before
    ledger.away = False
    found = await recover(folder, known=ledger.known, context=CONTEXT)
    assert found is not None
    found.close()
    assert frames_of_requests(folder) == expected_frames()


async def test_a_folder_without_a_board_or_with_a_strange_one_owes_its_journal_only(
    data_dir: Path,
) -> None:
    folder = crowded(data_dir)
    (folder / "board").write_bytes(b"x" * 8_192)
    for _ in range(2):
        found = await recover(folder, known=Ledger().known, context=CONTEXT)
        assert found is not None
        assert (found.records, len(found.settles)) == (0, 2)
        found.close()
        (folder / "board").unlink(missing_ok=True)


async def test_a_torn_slot_is_counted_and_freed(data_dir: Path) -> None:
    folder = crowded(data_dir)
    with (folder / "board").open("r+b") as file:
        file.seek(4096 + 3 * 256 + 10)
        file.write(b"\xaa\xbb")
    found = await recover(folder, known=Ledger().known, context=CONTEXT)
    assert found is not None
    assert found.torn == 1
    found.close()
    assert read_board(folder / "board") == []


async def settle_up(data_dir: Path) -> tuple[Ledger, Settles]:
    ledger, store = Ledger(), Settles()
    shipper = Shipper(data_dir, ledger.insert, store, CONTEXT, known=ledger.known)
    await shipper.ship_once()
    await shipper.close()
    return ledger, store


async def test_a_power_cut_with_any_earlier_board_and_any_lost_tail_never_doubles_or_invents(
    data_dir: Path,
) -> None:
    """Every moment's board with the final journal cut at every 16th byte and around its ends."""
    incarnation = Incarnation.create(data_dir, 0, 16, 16_384)
    boards = {}
    for step in live(incarnation):
        boards[step] = (incarnation.folder / "board").read_bytes()
    segment = segment_paths(incarnation.folder)[0].read_bytes()
    incarnation.close()
    ends = [frame.end for frame in read_segment(segment)]
    cuts = sorted({*range(0, ends[-1], 96), *(end + by for end in ends for by in (-1, 0, 1))})
    dispatched = {step for step, left in STEPS.items() if left.outcome}
    for step, board in boards.items():
        for cut in cuts:
            with fast_folder() as place:
                folder = place / "run" / incarnation.name
                folder.mkdir(parents=True)
                (folder / "board").write_bytes(board)
                data = segment[:cut].ljust(len(segment), b"\0")
                (folder / "journal-000001.seg").write_bytes(data)
                ledger, store = await settle_up(place)
                assert not folder.exists()
            recorded = cut >= ends[0]
            assert ledger.conflicts == []
            if recorded:
                assert ledger.rows[NAME].usage["completion_tokens"] == 6
                assert store.released == []
            elif step == "freed":
                assert ledger.rows == {}  # the promised loss: the unsynced tail of ended requests
            elif step in dispatched:
                assert ledger.rows[NAME].usage["completion_tokens"] == STEPS[step].completion
                assert [each.reservation_id for each in store.settled] == [NAME]
            else:
                assert ledger.rows == {}
            assert len(store.settled) + len(store.released) <= 1


async def test_a_tail_cut_at_every_byte_is_recovered_from_the_slot(data_dir: Path) -> None:
    """The slot ended, the record cut anywhere: one record, the same counts."""
    incarnation = Incarnation.create(data_dir, 0, 16, 4_096)
    for step in live(incarnation):
        if step == "ended":
            board = (incarnation.folder / "board").read_bytes()
        if step == "record_written":
            break
    segment = segment_paths(incarnation.folder)[0].read_bytes()
    incarnation.close()
    (end,) = [frame.end for frame in read_segment(segment)]
    for cut in range(end + 1):
        with fast_folder() as place:
            folder = place / "run" / incarnation.name
            folder.mkdir(parents=True)
            (folder / "board").write_bytes(board)
            (folder / "journal-000001.seg").write_bytes(segment[:cut].ljust(4_096, b"\0"))
            found = await recover(folder, known=Ledger().known, context=CONTEXT)
            assert found is not None
            assert found.records == (cut < end)
            ((_, settlement),) = found.settles
            assert settlement is not None
            assert settlement.charged[1].amount == 16
            found.close()
            assert sum(frames_of_requests(folder).values()) == 1


async def test_a_sequence_that_was_shipped_and_lost_is_not_used_again(data_dir: Path) -> None:
    """The tail was shipped and then lost in a power cut: what is written next is still shipped."""
    incarnation = Incarnation.create(data_dir, 0, 16, 16_384)
    ledger, store = Ledger(), Settles()
    for step in live(incarnation, bytes(16)):
        if step == "record_written":
            break
    for step in live(incarnation):
        if step == "ended":
            break
    shipper = Shipper(data_dir, ledger.insert, store, CONTEXT, known=ledger.known)
    assert await shipper.ship_once() == 1
    os.pwrite(incarnation.journal._descriptor, bytes(4_096), 0)
    incarnation.close()
    assert await shipper.ship_once() == 1
    await shipper.close()
    assert set(ledger.rows) == {bytes(16).hex(), NAME}
    assert {each.reservation_id for each in store.settled} == {bytes(16).hex(), NAME}
