"""What a request head must be so that there is one way to read it. Pure.

The raw bytes are checked first, for what llhttp forgives or hides: bare line ends, folded lines, odd
targets. llhttp then splits the fields and must find as many as there are lines; what the fields say
of framing is judged last. Stated choices: HTTP/1.0 is answered and closed, without chunks; a target is
a path (no absolute, authority or asterisk form); methods are upper case; an offer of h2c is ignored
as RFC 9110 7.8 allows (Java's client always makes it), any other upgrade is refused. ``%2F`` is a
character of its segment, never a separator: nothing here decodes a path. Sources: RFC 9112 sections
2.2, 3, 5, 6 and 11.2 (smuggling).
"""

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.contract.errors import BadRequestHead, HeadTooLarge, UriTooLong
from gateway.settings import WireSettings

METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
#: The longest method, two spaces and the version: what a first line holds beside its target.
_LINE_SLACK = 24
#: Targets and hosts up to this long are remembered once checked; there are few of them.
_CACHED_BYTES = 256
_LENGTH_DIGITS_MAX = 15
_JUDGED = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._\-]+)(?::[0-9]{1,5})?\Z")
#: Graphic ASCII less what a URI never holds raw: quotes, angle brackets, a fragment.
_TARGET = re.compile(rb"[!$-;=?-~]+\Z")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: llhttp's words for what a client did, in ours; anything else is the last one.
_SAID = {
    "Invalid header token": "a header line is not NAME: VALUE",
    "Unexpected space after start line": "a folded header line",
    "Invalid header value char": "a control character in a header",
    "Invalid character in Content-Length": "Content-Length is not one number",
    "Content-Length overflow": "Content-Length is not one number",
    "Duplicate Content-Length": "Content-Length is not one number",
    "Transfer-Encoding can't be present with Content-Length": (
        "Content-Length and Transfer-Encoding together"
    ),
    "Request has invalid `Transfer-Encoding`": "Transfer-Encoding other than a single chunked",
}
_ANOTHER_READING = "the head reads differently to another parser"


class Head:
    """A request head that passed. ``length``: the body's in bytes; None when chunked.
    ``headers``: names in lower case, values without the space around them.
    """

    __slots__ = ("close", "expects_continue", "headers", "http10", "length", "method", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        *,
        http10: bool,
        length: int | None,
        close: bool,
        expects_continue: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.http10 = http10
        self.length = length
        self.close = close
        self.expects_continue = expects_continue


class _Fields(list[tuple[bytes, bytes]]):
    """llhttp's one callback."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name.lower(), value.strip(b" \t")))


def check_partial(data: bytes | bytearray, settings: WireSettings) -> None:
    """Refuse what no further byte can make a head. ``data``: no empty line in it yet."""
    if not 0x41 <= data[0] <= 0x5A and data != b"\r":  # noqa: PLR2004 -- A to Z
        raise BadRequestHead("the request line is not METHOD TARGET HTTP/1.1")
    if len(data) > settings.uri_bytes_max + _LINE_SLACK and data.find(b"\r\n") < 0:
        raise UriTooLong
    if len(data) > settings.head_bytes_max:
        raise HeadTooLarge
    ends = data.count(b"\r\n")
    returns = data.count(b"\r") - data.endswith(b"\r")
    if data.count(b"\n") != ends or returns != ends:
        raise BadRequestHead("a bare CR or LF in the head")
    if b"\0" in data:
        raise BadRequestHead("a control character in the head")


def read_head(data: bytes, settings: WireSettings) -> Head:
    """The head in ``data``, which ends with its first empty line.

    Raises ``BadRequestHead``, ``UriTooLong``, ``HeadTooLarge``.
    """
    if len(data) > settings.head_bytes_max:
        raise HeadTooLarge
    ends = data.count(b"\r\n")
    if data.count(b"\n") != ends or data.count(b"\r") != ends:
        raise BadRequestHead("a bare CR or LF in the head")
    if ends - 2 > settings.headers_max:
        raise HeadTooLarge
    first = data[: data.find(b"\r\n")].split(b" ")
    if len(first) != 3:  # noqa: PLR2004 -- METHOD TARGET VERSION
        raise BadRequestHead("the request line is not METHOD TARGET HTTP/1.1")
    method = METHODS.get(first[0])
    if method is None:
        raise BadRequestHead("an unknown method")
    http10 = first[2] == b"HTTP/1.0"
    if not http10 and first[2] != b"HTTP/1.1":
        raise BadRequestHead("the version is not HTTP/1.1")
    target = first[1]
    if len(target) > settings.uri_bytes_max:
        raise UriTooLong
    refusal = _refused_target(target) if len(target) <= _CACHED_BYTES else _odd_target(target)
    if refusal is not None:
        raise BadRequestHead(refusal)
    if b"\r\n " in data or b"\r\n\t" in data:
        raise BadRequestHead("a folded header line")
    return _judge(method, target, _fields(data, ends - 2), http10=http10)


def _fields(data: bytes, count: int) -> _Fields:
    fields = _Fields()
    try:
        HttpRequestParser(fields).feed_data(data)
    except HttpParserUpgrade:
        pass  # judged below
    except HttpParserError as error:
        raise BadRequestHead(_SAID.get(str(error), _ANOTHER_READING)) from None
    if len(fields) != count:
        raise BadRequestHead(_ANOTHER_READING)
    return fields


def _judge(method: str, target: bytes, fields: _Fields, *, http10: bool) -> Head:
    host = length = coding = None
    connection = expect = b""
    for name, value in fields:
        if name not in _JUDGED:
            continue
        if name == b"host":
            if host is not None:
                raise BadRequestHead("exactly one valid Host is required")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise BadRequestHead("Content-Length is not one number")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None or value.lower() != b"chunked" or http10:
                raise BadRequestHead("Transfer-Encoding other than a single chunked")
            coding = value
        elif name == b"connection":
            connection += b"," + value.lower()
        elif name == b"expect":
            expect = value.lower()
            if expect != b"100-continue":
                raise BadRequestHead("an expectation other than 100-continue")
        elif value.lower() != b"h2c":
            raise BadRequestHead("an upgrade that is not offered here")
    if host is None or not _valid_host(host):
        raise BadRequestHead("exactly one valid Host is required")
    if length is not None:
        if coding is not None:
            raise BadRequestHead("Content-Length and Transfer-Encoding together")
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
            raise BadRequestHead("Content-Length is not one number")
    return Head(
        method,
        target,
        fields,
        http10=http10,
        length=None if coding is not None else 0 if length is None else int(length),
        close=http10 or (b"close" in connection and _says_close(connection)),
        expects_continue=expect != b"" and not http10,
    )


def _says_close(connection: bytes) -> bool:
    return b"close" in [token.strip() for token in connection.split(b",")]


@lru_cache(maxsize=_CACHED_BYTES)
def _valid_host(host: bytes) -> bool:
    return _HOST.match(host) is not None


def _odd_target(target: bytes) -> str | None:
    """Why a target is not a plain path with an optional query; None when it is."""
    if target[:1] != b"/" or not _TARGET.match(target):
        return "the request target is not a plain path"
    path = target.partition(b"?")[0]
    if b"%" in path and _BROKEN_ESCAPE.search(path):
        return "a broken escape in the path"
    plain = unquote_to_bytes(path)
    # What a second decoder, or a file system, would read as something else.
    if b"//" in plain or b"\\" in plain or b"%" in plain or min(plain) < 0x20 or 0x7F in plain:  # noqa: PLR2004
        return "the path can be read in two ways"
    for segment in plain.split(b"/"):
        if segment.partition(b";")[0] in (b".", b".."):
            return "the path can be read in two ways"
    return None


_refused_target = lru_cache(maxsize=_CACHED_BYTES)(_odd_target)
