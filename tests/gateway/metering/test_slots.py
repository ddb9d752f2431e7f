"""Whatever prefix of its stores a killed process made, a slot reads as before or as after."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.metering.board import Board, Slot
from gateway.metering.slots import (
    RESERVED_BIT,
    SLOT_BYTES,
    Progress,
    SlotImage,
    SlotState,
    Torn,
    decode_slot,
    ids_of,
)
from tests.support.records import ending

NOW_MS = 1_700_000_000_009


@pytest.fixture
def board(data_dir: Path) -> Iterator[Board]:
    made = Board(data_dir / "board", 16)
    yield made
    made.close()


def claimed(board: Board) -> Slot:
    slot = board.claim()
    assert slot is not None
    return slot


def bytes_of(board: Board, slot: Slot) -> bytes:
    start = 4096 + slot.index * SLOT_BYTES
    return board.map[start : start + SLOT_BYTES]


def open_slot(slot: Slot, request_id: bytes = bytes(16)) -> None:
    slot.reserving(request_id, ids_of(1, 2, 3, 4, 5), 0, 1, 1, 100, 50, NOW_MS - 9)


def mixtures(before: bytes, after: bytes) -> Iterator[bytes]:
    """The changed bytes in the order they are stored: the state byte comes last."""
    changed = [at for at in range(SLOT_BYTES) if before[at] != after[at]]
    changed.sort(key=lambda at: (at == 0, at))
    image = bytearray(before)
    for at in changed:
        image[at] = after[at]
        yield bytes(image)


def meaning(image: SlotImage | Torn | None) -> object:
    """What recovery decides by: state, counts, ending."""
    if not isinstance(image, SlotImage):
        return image
    return image.state, image.request_id, image.progress, image.ended


STEPS: list[Callable[[Slot], None]] = [
    open_slot,
    lambda slot: slot.reserved("epoch-1"),
    lambda slot: slot.dispatched(0, 7, NOW_MS),
    lambda slot: slot.progress(0, 12, 0),
    lambda slot: slot.progress(0, 12, 3),
    lambda slot: slot.progress(0, 12, 259),
    lambda slot: slot.progress(0, 12, 65_793),
    lambda slot: slot.ended(ending("ok", "engine_final", (12, 4, 70_000, 1), (15, 900))),
]


def test_a_step_cut_at_any_byte_means_what_it_meant_before_or_after(board: Board) -> None:
    for _ in range(3):  # the second and third life of the slot find the first one's bytes
        slot = claimed(board)
        for step in STEPS:
            before = bytes_of(board, slot)
            step(slot)
            after = bytes_of(board, slot)
            allowed = (meaning(decode_slot(before)), meaning(decode_slot(after)))
            for image in mixtures(before, after):
                assert meaning(decode_slot(image)) in allowed
        slot.free()
        assert decode_slot(bytes_of(board, slot)) is None


def test_a_torn_half_leaves_the_older_one(board: Board) -> None:
    slot = claimed(board)
    for step in STEPS[:5]:
        step(slot)
    before = bytes_of(board, slot)
    slot.progress(0, 12, 0x01020304)
    after = bytes_of(board, slot)
    torn = list(mixtures(before, after))[:-1]
    assert len(torn) >= 8
    for image in torn:
        decoded = decode_slot(image)
        assert isinstance(decoded, SlotImage)
        assert decoded.progress == Progress(0, 12, 3, delivered=True)


def test_the_newer_half_wins_when_the_sequence_wraps(board: Board) -> None:
    slot = claimed(board)
    for step in STEPS[:3]:
        step(slot)
    slot._turn = (0xFFFFFE) << 8
    for completion in (1, 2, 3):
        slot.progress(0, 12, completion)
        decoded = decode_slot(bytes_of(board, slot))
        assert isinstance(decoded, SlotImage)
        assert decoded.progress == Progress(0, 12, completion, delivered=True)


def test_counts_of_an_earlier_attempt_stay_with_it(board: Board) -> None:
    slot = claimed(board)
    open_slot(slot)
    slot.reserved("e")
    slot.dispatched(0, 7, NOW_MS)
    slot.progress(0, 12, 0)
    slot.attempt_failed(0, 503, NOW_MS)
    slot.dispatched(1, 8, NOW_MS)
    decoded = decode_slot(bytes_of(board, slot))
    assert isinstance(decoded, SlotImage)
    assert decoded.progress is None
    first, second = decoded.attempts
    assert (first.endpoint_id, first.status, first.prompt, first.failed) == (7, 503, 12, True)
    assert (second.endpoint_id, second.failed) == (8, False)


def test_a_fifth_attempt_takes_the_fourth_entry(board: Board) -> None:
    slot = claimed(board)
    open_slot(slot)
    for attempt in range(6):
        slot.dispatched(attempt, 10 + attempt, NOW_MS)
    slot.progress(5, 9, 1)
    decoded = decode_slot(bytes_of(board, slot))
    assert isinstance(decoded, SlotImage)
    assert [each.number for each in decoded.attempts] == [0, 1, 2, 5]
    assert decoded.progress == Progress(5, 9, 1, delivered=True)


def test_delivered_is_said_by_a_count_or_by_the_caller(board: Board) -> None:
    slot = claimed(board)
    open_slot(slot)
    slot.dispatched(0, 7, NOW_MS)
    for completion, delivered, expected in ((0, False, False), (1, False, True), (0, True, True)):
        slot.progress(0, 9, completion, delivered)
        decoded = decode_slot(bytes_of(board, slot))
        assert isinstance(decoded, SlotImage)
        assert decoded.progress is not None
        assert decoded.progress.delivered is expected


def test_absurd_counts_are_cut_and_do_not_raise(board: Board) -> None:
    slot = claimed(board)
    slot.reserving(bytes(16), ids_of(1, 2, 3, 4, 5), 0, 1 << 40, 1 << 40, 1 << 40, 1 << 40, 1)
    slot.reserved("e" * 24)
    slot.dispatched(0, 7, NOW_MS)
    slot.progress(0, -5, 1 << 80)
    slot.ended(ending("ok", "engine_final", (1 << 80, -1, 2, 3), (1 << 40, -7)))
    decoded = decode_slot(bytes_of(board, slot))
    assert isinstance(decoded, SlotImage)
    assert (decoded.choices, decoded.cap, decoded.epoch) == (0xFFFF, 0xFFFFFFFF, "e" * 24)
    assert decoded.progress == Progress(0, 0, 0xFFFFFFFF, delivered=True)
    assert decoded.ended is not None
    assert (decoded.ended.prompt, decoded.ended.cached) == (0xFFFFFFFF, 0)
    with pytest.raises(ValueError, match="at most 24"):
        slot.reserved("e" * 25)


def test_any_256_bytes_are_read_without_an_error() -> None:
    chance = random.Random(5)
    for _ in range(2_000):
        data = bytearray(chance.randbytes(SLOT_BYTES))
        data[0] = chance.randrange(8)
        decoded = decode_slot(bytes(data))
        assert decoded is None or isinstance(decoded, Torn)


def test_a_flipped_bit_in_the_identity_is_torn_and_elsewhere_changes_no_identity(
    board: Board,
) -> None:
    slot = claimed(board)
    for step in STEPS:
        step(slot)
    whole = bytes_of(board, slot)
    good = decode_slot(whole)
    assert isinstance(good, SlotImage)
    for at in range(1, SLOT_BYTES):
        data = bytearray(whole)
        data[at] ^= 0x10
        decoded = decode_slot(bytes(data))
        if at < 68:
            assert isinstance(decoded, Torn)
            continue
        assert isinstance(decoded, SlotImage)
        assert decoded.request_id == good.request_id
        if at >= 224:
            assert decoded.ended is None
            assert decoded.state is SlotState.ENDED
        elif at >= 192:
            assert decoded.progress is not None
            assert decoded.progress.completion in (259, 65_793)


def test_a_slot_remembers_that_it_was_admitted_on_reserved_throughput(board: Board) -> None:
    slot = claimed(board)
    slot.reserving(bytes(16), ids_of(1, 2, 3, 4, 5), 1 | RESERVED_BIT, 1, 1, 100, 50, NOW_MS - 9)
    image = decode_slot(bytes_of(board, slot))

    assert isinstance(image, SlotImage)
    assert (image.operation, image.reserved) == ("completions", True)
