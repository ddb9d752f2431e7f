"""A head that goes out cannot be made to say more than its headers."""

import pytest

from gateway.wire import heads


def test_a_head_in_full() -> None:
    made = heads.head(200, heads.written([(b"a", b"b")]), heads.sized(3), close=True)
    first, date, *rest = made.split(b"\r\n")
    assert first == b"HTTP/1.1 200 OK"
    assert date.startswith(b"date: ")
    assert date.endswith(b" GMT")
    assert rest == [b"a: b", b"content-length: 3", b"connection: close", b"", b""]


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\n", b"a\r", b"\0"])
def test_a_value_that_would_end_its_line_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        heads.written([(b"a", value)])


def test_an_unknown_status_is_still_a_status_line() -> None:
    assert heads.head(299, b"", b"", close=False).startswith(b"HTTP/1.1 299 ")


def test_a_chunk_carries_its_size_in_hex() -> None:
    assert heads.chunk(b"x" * 255) == b"ff\r\n" + b"x" * 255 + b"\r\n"
