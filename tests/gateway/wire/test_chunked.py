"""A chunked body is decoded strictly, in any split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.errors import BadRequestHead, BodyTooLarge
from gateway.wire.chunked import ChunkedBody


def decode(pieces: list[bytes], limit: int = 1 << 20) -> ChunkedBody:
    body = ChunkedBody(limit)
    for piece in pieces:
        body.feed(piece)
    return body


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 9))
def test_any_split_gives_the_same_body(chunks: list[bytes], step: int) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    body = decode([wire[at : at + step] for at in range(0, len(wire), step)])
    assert body.done
    assert b"".join(body.parts) == b"".join(chunks)
    assert body.rest == b""


def test_what_follows_the_body_is_the_next_request() -> None:
    body = decode([b"3\r\nabc\r\n0\r\n\r\nGET"])
    assert (b"".join(body.parts), body.rest) == (b"abc", b"GET")


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
