"""HTTP/1.1 heads as bytes, out: status lines and header lines. Pure but for the cached date.

Not here: reading heads (``guard``, ``server``).
"""

import http
import time
from collections.abc import Sequence
from email.utils import formatdate

Headers = Sequence[tuple[bytes, bytes]]
_STATUS = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}
_date: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """The ``date`` header, made once a second."""
    global _date  # noqa: PLW0603 -- a cache of one value, the same for every connection
    now_s = int(time.time())
    if _date[0] != now_s:
        _date = (now_s, b"date: " + formatdate(now_s, usegmt=True).encode() + b"\r\n")
    return _date[1]


def head(status: int, lines: bytes, framing: bytes, *, close: bool) -> bytes:
    """A response head. ``lines``: as ``written`` makes them; ``framing``: the content-length or
    transfer-encoding line, or nothing.
    """
    said = _STATUS.get(status) or b"HTTP/1.1 %d Status\r\n" % status
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    return said + date_line() + lines + framing + end


def written(headers: Headers) -> bytes:
    """Header pairs as lines. Raises ``ValueError`` for a header that would end its line."""
    made = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    if made.count(b"\n") != len(headers) or made.count(b"\r") != len(headers) or b"\0" in made:
        raise ValueError("a header holds a line end or NUL")
    return made


def sized(length: int) -> bytes:
    return b"content-length: %d\r\n" % length


CHUNKED = b"transfer-encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; ``data`` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)
