"""Checks of a request head that leave no room for two readings of it.

The raw bytes are checked before the parser, which hides some things (bare line ends, folded lines,
spaces before colons); the parsed head after it. Sources: RFC 9112 sections 2.2, 3.2, 5, 6.1-6.3,
11.2 (smuggling). Pure.
"""

import re

from gateway.contract.errors import (
    BadRequestHead,
    ExpectationFailed,
    HeadTooLarge,
    UriTooLong,
)
from gateway.settings import WireSettings

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
#: One whole line each; lines that are none, or are folded, are missed and so counted.
_HEADERS = re.compile(
    rb"(?<=\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\r\n"
)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._\-]+)(?::[0-9]{1,5})?\Z")
#: A model's name may hold a slash, which official clients encode; here alone it is no trick.
MODELS = b"/v1/models/"
_ENCODED_SLASH = re.compile(rb"(?i)%2f")
#: Dots also before a parameter (``/..;x/``); an escaped dot, slash, backslash, percent (an escape
#: inside an escape) or control; overlong UTF-8; what is no escape at all (``%zz``).
_PATH_TRICKS = re.compile(
    rb"(?i)//|/\.\.?(?:[/;]|\Z)|\\|#|%(?:2[5ef]|5c|[01]|7f|c[01]|f[5-9a-f]|(?![0-9a-f]{2}))"
)
#: No sign, no list, no leading zero (octal to some): one number that every reader reads alike.
_LENGTH = re.compile(rb"(?:0|[1-9][0-9]{0,14})\Z")
#: Headers that must not come twice: each copy may be believed by another reader.
_SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect"}
)


class Head:
    """A request head that passed. ``length``: the body's; None when chunked. ``fields``: the first
    value of each name. ``memo`` is the handler's, for what it worked out from these bytes alone:
    one head may serve many requests that are alike.
    """

    __slots__ = (
        "close",
        "expects_continue",
        "fields",
        "headers",
        "http10",
        "length",
        "memo",
        "method",
        "path",
        "query",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
        *,
        http10: bool,
        length: int | None,
        close: bool,
        expects_continue: bool,
    ) -> None:
        self.method = method
        self.target = target
        path, _, query = target.decode("latin-1").partition("?")
        self.path = path
        self.query = query
        self.memo: object = None
        self.headers = headers
        self.fields = fields
        self.http10 = http10
        self.length = length
        self.close = close
        self.expects_continue = expects_continue


def read_head(data: bytes, settings: WireSettings) -> Head:
    """The head in ``data``, which ends with the empty line. Raises what the client did wrong."""
    lines = data.count(b"\r\n")
    if data.count(b"\n") != lines or data.count(b"\r") != lines:
        raise BadRequestHead("bare CR or LF in the head")
    first = _REQUEST_LINE.match(data)
    if first is None:
        raise BadRequestHead("the request line is not METHOD TARGET HTTP/1.1")
    method, target, minor = first.groups()
    if method not in METHODS:
        raise BadRequestHead("unknown method")
    if len(target) > settings.uri_bytes_max:
        raise UriTooLong
    path = target.partition(b"?")[0]
    if path.startswith(MODELS):
        path = _ENCODED_SLASH.sub(b"", path)
    if target[:1] != b"/" or _PATH_TRICKS.search(path):
        raise BadRequestHead("the request target is not a plain path")
    if lines - 2 > settings.headers_max:
        raise HeadTooLarge
    found = _HEADERS.findall(data, first.end() - 1)
    if len(found) != lines - 2:
        raise BadRequestHead("a header line is not NAME: VALUE, or is folded")
    headers = [(name.lower(), value.rstrip(b" \t")) for name, value in found]
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _firsts(headers)
    return _judge(method.decode(), target, headers, fields, http10=minor == b"0")


def is_length(digits: bytes) -> bool:
    """One number that every reader reads alike."""
    return _LENGTH.match(digits) is not None


def _firsts(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The first value of each name, where some name is there twice."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name == b"expect":
            raise ExpectationFailed
        elif name in _SINGLE:
            raise BadRequestHead(f"{name.decode()} is there twice")
    return fields


def _judge(
    method: str,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    fields: dict[bytes, bytes],
    *,
    http10: bool,
) -> Head:
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    expect = fields.get(b"expect")
    if not _HOST.match(fields.get(b"host", b"")):
        raise BadRequestHead("exactly one valid Host is required")
    if length is not None and coding is not None:
        raise BadRequestHead("Content-Length and Transfer-Encoding together")
    if length is not None and not _LENGTH.match(length):
        raise BadRequestHead("Content-Length is not one number")
    if coding is not None and (coding.lower() != b"chunked" or http10):
        raise BadRequestHead("Transfer-Encoding other than a single chunked")
    if expect is not None and expect.lower() != b"100-continue":
        raise ExpectationFailed
    return Head(
        method,
        target,
        headers,
        fields,
        http10=http10,
        length=None if coding is not None else int(length or 0),
        close=http10 or (b"connection" in fields and _says_close(headers)),
        expects_continue=expect is not None and not http10,
    )


def _says_close(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        token.strip().lower() == b"close"
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    )
