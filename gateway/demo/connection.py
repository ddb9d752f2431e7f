"""One client of the demo engine: HTTP/1.1 in, answers out in order, as uvicorn frames them.

A client that closes, half or whole, has left: whoever answers it is told at once. Not the gateway's
server: no deadlines, no caps, no hostile input in mind.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.demo.shapes import EVENT_STREAM, JSON

Headers = Sequence[tuple[bytes, bytes]]


class Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")


class Connection(asyncio.Protocol):
    """``handle(request, self)`` answers by ``respond``, or by ``begin``, ``chunk``... and ``end``."""

    transport: asyncio.Transport

    def __init__(
        self,
        handle: Callable[[Request, "Connection"], None],
        open_ones: set["Connection"],
        admit: Callable[[], bool],
        idle_s: Callable[[], float],
    ) -> None:
        self.on_gone: Callable[[], None] | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handle = handle
        self._open_ones = open_ones
        self._admit = admit
        self._idle_s = idle_s
        self._idle: asyncio.TimerHandle | None = None
        self._parser = HttpRequestParser(self)
        self._pending: deque[tuple[Request, bool]] = deque()
        self._busy = False
        self._keep = True
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    # -- answers ------------------------------------------------------------------------------

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: Headers = (),
        *,
        length_off_by: int = 0,
    ) -> None:
        length = b"content-length: %d\r\n" % (len(body) + length_off_by)
        typed = b"content-type: %b\r\n" % content_type if body else b""
        self.transport.write(self._head(status, length + typed, headers) + body)

    def begin(self, headers: Headers = ()) -> None:
        """The head of an event stream."""
        framing = b"content-type: %b\r\ntransfer-encoding: chunked\r\n" % EVENT_STREAM
        self.transport.write(self._head(200, framing, headers))

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_chunks(self) -> None:
        self.transport.write(b"0\r\n\r\n")

    def done(self, extra: bytes = b"") -> None:
        """The answer is whole; ``extra`` goes out after it."""
        self.on_gone = None
        self._busy = False
        if self.transport.is_closing():
            return
        if extra:
            self.transport.write(extra)
        if not self._keep:
            self.transport.close()
        elif self._pending:
            self._next()
        else:
            self._rest()

    def cut(self) -> None:
        """Close in the middle: what was written goes out, the end does not."""
        self.on_gone = None
        self.transport.close()

    # -- the transport's callbacks ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._open_ones.add(self)
        if self._admit():
            self._rest()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._keep = False
            self.respond(400, b"Invalid HTTP request received.", b"text/plain; charset=utf-8")
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._open_ones.discard(self)
        self._pending.clear()
        if self._idle is not None:
            self._idle.cancel()
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()
        self.closed.set_result(None)

    # -- llhttp's callbacks -------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if any(pair == (b"expect", b"100-continue") for pair in self._headers) and not self._busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        request = Request(
            self._parser.get_method().decode(),
            self._url.partition(b"?")[0].decode("latin-1"),
            self._headers,
            b"".join(self._body),
        )
        self._url, self._headers, self._body = b"", [], []
        self._pending.append((request, self._parser.should_keep_alive()))
        if not self._busy:
            self._next()

    # -- inside -------------------------------------------------------------------------------

    def _next(self) -> None:
        request, self._keep = self._pending.popleft()
        self._busy = True
        self._handle(request, self)

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._idle_s(), self.transport.close)

    def _head(self, status: int, framing: bytes, headers: Headers) -> bytes:
        extra = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        if not self._keep:
            extra += b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: uvicorn\r\n%bvary: Origin\r\n%b\r\n" % (
            status, HTTPStatus(status).phrase.encode(), formatdate(usegmt=True).encode(),
            framing, extra,
        )  # fmt: skip
