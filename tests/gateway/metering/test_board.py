"""The board's file and free list."""

import errno
import os
from pathlib import Path

import pytest

from gateway.metering.board import Board, Slot, SlotImage, Torn, free_slot, read_board
from gateway.metering.slots import ids_of


def opened(board: Board, number: int) -> Slot:
    slot = board.claim()
    assert slot is not None
    slot.reserving(number.to_bytes(16), ids_of(1, 2, 3, 4, 5), 0, 1, 1, 100, 50, 1_700_000_000_000)
    return slot


def test_claims_end_when_all_slots_are_taken_and_begin_again_when_one_is_free(
    data_dir: Path,
) -> None:
    board = Board(data_dir / "board", 16)
    slots = [opened(board, number) for number in range(16)]
    assert len({slot.index for slot in slots}) == 16
    assert board.claim() is None
    assert board.in_use == 16
    slots[3].free()
    assert board.claim() is slots[3]
    board.close()


def test_a_slot_is_freed_once_a_claim(data_dir: Path) -> None:
    board = Board(data_dir / "board", 16)
    slot = opened(board, 1)
    slot.free()
    with pytest.raises(RuntimeError, match="freed twice"):
        slot.free()
    board.close()


def test_reading_finds_the_slots_in_use_only(data_dir: Path) -> None:
    path = data_dir / "board"
    board = Board(path, 16)
    slots = [opened(board, number) for number in range(3)]
    slots[1].free()
    found = read_board(path)
    assert [slot.request_id for slot in found if isinstance(slot, SlotImage)] == [
        (0).to_bytes(16).hex(),
        (2).to_bytes(16).hex(),
    ]
    free_slot(path, slots[0].index)
    assert [slot.index for slot in read_board(path)] == [slots[2].index]
    board.map[4096 + slots[2].index * 256 + 9] ^= 1
    assert read_board(path) == [Torn(slots[2].index)]
    board.close()


def test_a_full_disk_fails_at_creation(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Board(data_dir / "board", 16)


def test_the_file_is_allocated_and_not_sparse(data_dir: Path) -> None:
    board = Board(data_dir / "board", 1024)
    found = (data_dir / "board").stat()
    assert found.st_size == 4096 + 1024 * 256
    assert found.st_blocks * 512 >= found.st_size
    board.close()


@pytest.mark.parametrize("content", [b"", b"TFBOARD\x01", bytes(8192), b"x" * 8192])
def test_a_file_that_is_no_board_is_refused(data_dir: Path, content: bytes) -> None:
    path = data_dir / "board"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="board"):
        read_board(path)
