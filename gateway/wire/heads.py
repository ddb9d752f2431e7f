"""HTTP/1.1 heads and chunk framing as bytes, outward: status lines, header lines. Pure.

Not here: reading heads (``gateway.wire.guard``). Source: RFC 9112 sections 4, 5 and 7.1.
"""

import http
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache

Headers = Sequence[tuple[bytes, bytes]]

CHUNKED = b"transfer-encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
#: Statuses whose answers have no body, nor a length (RFC 9110 8.6, 15.4.5).
BODILESS = frozenset({204, 304})
_STATUS = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}


def head(status: int, headers: Headers, framing: bytes, *, close: bool, now_s: int) -> bytes:
    """A response head. ``framing``: the content-length or transfer-encoding line, or nothing;
    ``now_s``: Unix seconds.

    Raises ``ValueError`` for a header that would end its own line.
    """
    fields = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    count = len(headers)
    if fields.count(b"\n") != count or fields.count(b"\r") != count or b"\0" in fields:
        raise ValueError("a response header holds a line end or a NUL")
    return b"%b%b%b%b%b" % (
        _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status,
        date_line(now_s),
        fields,
        framing,
        b"connection: close\r\n\r\n" if close else b"\r\n",
    )


@lru_cache(maxsize=2)
def date_line(now_s: int) -> bytes:
    """The ``date`` header; made once a second, however many ask."""
    return b"date: " + formatdate(now_s, usegmt=True).encode() + b"\r\n"


def sized(length: int) -> bytes:
    """The line that frames a body of ``length`` bytes."""
    return b"content-length: %d\r\n" % length


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; ``data`` must not be empty, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
