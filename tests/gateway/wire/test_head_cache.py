"""Heads seen before: the same verdict for less, and never another's."""

import pytest

from gateway.contract.errors import BadRequestHead
from gateway.settings import WireSettings
from gateway.wire.head_cache import KEPT, HeadCache


def head(*lines: bytes, length: bytes | None = b"5") -> bytes:
    sized = () if length is None else (b"Content-Length: " + length,)
    return b"\r\n".join((b"POST /v1/x HTTP/1.1", b"Host: a", *lines, *sized, b"", b""))


def test_heads_that_differ_in_their_length_alone_are_one() -> None:
    cache = HeadCache(WireSettings())
    first, five = cache.read(head())
    second, many = cache.read(head(length=b"123"))
    assert first is second
    assert (five, many) == (5, 123)


@pytest.mark.parametrize(
    "other",
    [
        head(b"Authorization: Bearer b"),
        head(length=None),
        head().replace(b"/v1/x", b"/v1/y"),
        head().replace(b"Content-Length", b"content-length"),
        head(b"X: 1"),
    ],
)
def test_any_other_byte_makes_another_head(other: bytes) -> None:
    cache = HeadCache(WireSettings())
    first, _ = cache.read(head(b"Authorization: Bearer a"))
    assert cache.read(other)[0] is not first


@pytest.mark.parametrize("length", [b"", b"+5", b"05", b"5, 5", b" 5 ", b"5" * 16, b"0x5"])
def test_a_length_that_is_no_plain_number_is_judged_each_time(length: bytes) -> None:
    cache = HeadCache(WireSettings())
    cache.read(head())
    data = head(length=length)
    if length == b" 5 ":  # the space around a value is no part of it
        assert cache.read(data)[1] == 5
        return
    with pytest.raises(BadRequestHead):
        cache.read(data)


@pytest.mark.parametrize(
    "beside",
    [b"Content-Length: 7", b"content-length: 5", b"Transfer-Encoding: chunked", b"a b: c"],
)
def test_a_known_head_with_something_beside_it_is_refused(beside: bytes) -> None:
    cache = HeadCache(WireSettings())
    cache.read(head())
    for data in (head(beside), head()[:-2] + beside + b"\r\n\r\n"):
        with pytest.raises(BadRequestHead):
            cache.read(data)


def test_a_header_that_only_ends_like_a_length_is_none() -> None:
    cache = HeadCache(WireSettings())
    assert cache.read(head(b"X-Content-Length: 9", length=None))[1] == 0
    assert cache.read(head(b"X-Content-Length: 9"))[1] == 5


def test_chunked_bodies_have_no_length() -> None:
    cache = HeadCache(WireSettings())
    data = head(b"Transfer-Encoding: chunked", length=None)
    assert cache.read(data)[1] is None
    assert cache.read(data)[1] is None


def test_what_is_remembered_is_bounded() -> None:
    cache = HeadCache(WireSettings())
    for number in range(KEPT + 10):
        cache.read(head(b"X: %d" % number))
    assert len(cache._sized) <= KEPT
    long = head(b"X: " + b"a" * 3000)
    assert cache.read(long)[0] is not cache.read(long)[0]
