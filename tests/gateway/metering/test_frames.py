"""Frames: read back whole, and never beyond the first that is not."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.frames import (
    FrameKind,
    is_clean,
    pack_frame,
    pack_marks,
    read_frames,
    read_segment,
    unpack_marks,
)

PAYLOADS = [b"first", b"", b"third" * 40, b"\0\1the end"]


def segment(payloads: list[bytes]) -> bytes:
    return b"".join(
        pack_frame(FrameKind.RECORD, number, payload)
        for number, payload in enumerate(payloads, start=1)
    )


def test_a_tail_cut_at_every_byte_loses_that_frame_and_no_other() -> None:
    whole = segment(PAYLOADS)
    ends = [frame.end for frame in read_segment(whole)]
    assert ends[-1] == len(whole)
    for cut in range(len(whole) + 1):
        complete = sum(end <= cut for end in ends)
        for tail in (b"", bytes(600)):  # the file ends, or is allocated further
            found = [frame.payload for frame in read_segment(whole[:cut] + tail)]
            assert found == PAYLOADS[:complete]


def test_a_flipped_bit_anywhere_ends_the_reading_there() -> None:
    whole = segment(PAYLOADS)
    starts = [0, *(frame.end for frame in read_segment(whole))][:-1]
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1
        found = [frame.payload for frame in read_segment(bytes(data))]
        hit = sum(start <= at for start in starts) - 1
        assert found == PAYLOADS[:hit]


def test_an_older_frame_behind_the_tail_is_not_taken_for_a_new_one() -> None:
    data = segment(PAYLOADS[:2]) + pack_frame(FrameKind.RECORD, 2, b"stale")
    assert [frame.sequence for frame in read_segment(data)] == [1, 2]
    assert list(read_frames(data, after=2)) == []


def test_a_clean_tail_is_all_zeros() -> None:
    data = segment(PAYLOADS)
    assert is_clean(data + bytes(100), len(data))
    assert not is_clean(data + bytes(99) + b"\1", len(data))
    assert is_clean(b"", 0)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_marks_survive(sequences: list[int]) -> None:
    assert unpack_marks(pack_marks(sequences)) == tuple(sequences)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    assert all(frame.end <= len(data) for frame in read_segment(data))
