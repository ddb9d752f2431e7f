"""A chunked body is decoded strictly, in any split."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.errors import BadRequestHead, BodyTooLarge
from gateway.wire.chunked import ChunkedBody


def decode(pieces: list[bytes], limit: int = 1 << 20) -> ChunkedBody:
    body = ChunkedBody(limit)
    for piece in pieces:
        body.feed(piece)
        while body.behind:
            body.feed(b"")
    return body


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 9))
def test_any_split_gives_the_same_body(chunks: list[bytes], step: int) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    body = decode([wire[at : at + step] for at in range(0, len(wire), step)])
    assert body.done
    assert bytes(body.body) == b"".join(chunks)
    assert body.rest == b""


def test_what_follows_the_body_is_the_next_request() -> None:
    body = decode([b"3\r\nabc\r\n0\r\n\r\nGET"])
    assert (bytes(body.body), body.rest) == (b"abc", b"GET")


@pytest.mark.parametrize(
    "wire",
    [
        b"3;ext=1\r\nabc\r\n", b"3 \r\nabc\r\n", b" 3\r\nabc\r\n", b"0x3\r\nabc\r\n",
        b"+3\r\nabc\r\n", b"-1\r\n", b"\r\nabc", b"3\nabc\n",  b"g\r\n",
        b"123456789\r\n", b"3\r\nabcd\r\n", b"3\r\nabc\n0\r\n\r\n", b"0\r\nX: y\r\n\r\n",
        b"3_0\r\n",
    ],
)  # fmt: skip
def test_odd_framing_is_refused(wire: bytes) -> None:
    with pytest.raises(BadRequestHead):
        decode([wire])


def test_the_body_is_bounded_before_it_is_here() -> None:
    with pytest.raises(BodyTooLarge):
        decode([b"ffffffff\r\n"])


def test_very_many_tiny_chunks_are_refused_and_many_larger_ones_are_not() -> None:
    with pytest.raises(BadRequestHead):
        decode([b"1\r\nx\r\n" * 70_000])
    assert len(decode([b"40\r\n" + b"x" * 64 + b"\r\n"] * 70_000, 8 << 20).body) == 70_000 * 64


def test_a_turn_decodes_some_and_goes_on() -> None:
    body = ChunkedBody(1 << 20)
    body.feed(b"1\r\nx\r\n" * 3000 + b"0\r\n\r\nGET")
    turns = 1
    while body.behind:
        body.feed(b"")
        turns += 1
    assert (len(body.body), body.done, body.rest, turns) == (3000, True, b"GET", 3)


def cost_s(wire: bytes, step: int) -> float:
    began = time.thread_time()
    decode([wire[at : at + step] for at in range(0, len(wire), step)], 16 << 20)
    return time.thread_time() - began


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (b"1\r\nx\r\n" * 6_000, b"1\r\nx\r\n" * 60_000),
        (b"100000\r\n" + b"x" * (1 << 20) + b"\r\n", b"a00000\r\n" + b"x" * (10 << 20) + b"\r\n"),
    ],
    ids=["tiny chunks", "one chunk"],
)  # fmt: skip
def test_ten_times_the_bytes_cost_about_ten_times_the_time(small: bytes, large: bytes) -> None:
    """In pieces of one packet; quadratic work would be a hundred times."""
    assert min(cost_s(large, 1460) for _ in range(3)) < 40 * cost_s(small, 1460) + 0.01
