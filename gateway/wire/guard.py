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
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.([01])\Z")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._\-]+)(?::[0-9]{1,5})?\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: A model's name may hold a slash, which official clients encode; here alone it is no trick.
MODELS = b"/v1/models/"
_ENCODED_SLASH = re.compile(rb"(?i)%2f")
#: Dots also before a parameter (``/..;x/``); an escaped dot, slash, backslash, percent (an escape
#: inside an escape) or control; a high byte (overlong UTF-8); what is no escape at all (``%zz``).
_PATH_TRICKS = re.compile(
    rb"(?i)//|/\.\.?(?:[/;]|\Z)|\\|#|%(?:2[5ef]|5c|[01]|7f|c[01]|f[5-9a-f]|(?![0-9a-f]{2}))"
)
#: No sign, no list, no leading zero (octal to some): one number that every reader reads alike.
_LENGTH = re.compile(rb"(?:0|[1-9][0-9]{0,14})\Z")


class Head:
    """A request head that passed. ``length``: the body's; None when chunked."""

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


def read_head(data: bytes, settings: WireSettings) -> Head:
    """The head in ``data``, which ends with the empty line. Raises what the client did wrong."""
    lines = data[:-4].split(b"\r\n")
    if b"\n" in data.replace(b"\r\n", b"") or b"\r" in data.replace(b"\r\n", b""):
        raise BadRequestHead("bare CR or LF in the head")
    first = _REQUEST_LINE.match(lines[0])
    if first is None:
        raise BadRequestHead("the request line is not METHOD TARGET HTTP/1.1")
    method, target, minor = first[1], first[2], first[3]
    if method not in METHODS:
        raise BadRequestHead("unknown method")
    if len(target) > settings.uri_bytes_max:
        raise UriTooLong
    path = target.split(b"?")[0]
    if path.startswith(MODELS):
        path = _ENCODED_SLASH.sub(b"", path)
    if target[:1] != b"/" or _PATH_TRICKS.search(path):
        raise BadRequestHead("the request target is not a plain path")
    if len(lines) - 1 > settings.headers_max:
        raise HeadTooLarge
    headers = [_header(line) for line in lines[1:]]
    return _judge(method.decode(), target, headers, http10=minor == b"0")


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.match(name):
        raise BadRequestHead("a header line is not NAME: VALUE, or is folded")
    value = value.strip(b" \t")
    if _CONTROL.search(value):
        raise BadRequestHead("a control character in a header")
    return name.lower(), value


def _judge(method: str, target: bytes, headers: list[tuple[bytes, bytes]], *, http10: bool) -> Head:
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    expects: list[bytes] = []
    credentials = 0
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            connection += [token.strip().lower() for token in value.split(b",")]
        elif name == b"expect":
            expects.append(value.lower())
        elif name == b"authorization":
            credentials += 1
    if len(hosts) != 1 or not _HOST.match(hosts[0]):
        raise BadRequestHead("exactly one valid Host is required")
    if lengths and codings:
        raise BadRequestHead("Content-Length and Transfer-Encoding together")
    if len(lengths) > 1 or (lengths and not _LENGTH.match(lengths[0])):
        raise BadRequestHead("Content-Length is not one number")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or http10):
        raise BadRequestHead("Transfer-Encoding other than a single chunked")
    if credentials > 1:
        raise BadRequestHead("Authorization is there twice")
    if expects and expects != [b"100-continue"]:
        raise ExpectationFailed
    keep = b"keep-alive" in connection if http10 else b"close" not in connection
    return Head(
        method,
        target,
        headers,
        http10=http10,
        length=None if codings else int(lengths[0]) if lengths else 0,
        close=not keep or http10,
        expects_continue=bool(expects) and not http10,
    )
