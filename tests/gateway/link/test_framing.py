"""Frames survive any cut, and nonsense ends the connection instead of filling memory."""

import pytest

from gateway.link.framing import BODY_BYTES_MAX, Frame, FrameError, Splitter, pack

FRAMES = [Frame(0, "hello", b""), Frame(7, "usage", b"x" * 300), Frame(0, "moves", b"\x00\xff")]
WIRE = b"".join(pack(f.kind, f.body, f.number) for f in FRAMES)


@pytest.mark.parametrize("step", [1, 2, 5, 64, len(WIRE)])
def test_frames_survive_any_cut(step: int) -> None:
    splitter = Splitter()
    seen = []
    for start in range(0, len(WIRE), step):
        seen += splitter.feed(WIRE[start : start + step])
    assert seen == FRAMES


def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(FrameError):
        Splitter().feed(b"\xff" * 9)


def test_a_kind_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(FrameError):
        Splitter().feed(b"\x00\x00\x00\x06" + b"\x00\x00\x00\x00" + b"\xff" + b"k" * 300)


def test_a_body_beyond_the_bound_is_not_sent() -> None:
    with pytest.raises(FrameError):
        pack("moves", bytes(BODY_BYTES_MAX + 1))
