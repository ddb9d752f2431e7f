"""The answering side of a client connection, handed to the handler with each request.

One ``send``, or ``start``, ``write`` and ``finish``. Back-pressure and the client's leaving come back
through three callbacks. Not here: reading requests (``gateway.wire.server``).
"""

from asyncio import Task, Transport
from collections.abc import Callable

import msgspec

from gateway.wire import heads
from gateway.wire.heads import Headers


class Reply(msgspec.Struct, eq=False):
    """``gone``: the client has left (closed, half-closed, reset, or does not read). ``grants``:
    header pairs that every answer carries.
    """

    transport: Transport
    is_head: bool
    chunked: bool  # whether its client takes chunks: one of HTTP/1.0 does not
    close: bool
    on_done: Callable[[bool], None]
    started: bool = False
    done: bool = False
    gone: bool = False
    grants: Headers = ()
    on_gone: Callable[[], None] | None = None
    on_pause: Callable[[], None] | None = None
    on_resume: Callable[[], None] | None = None
    task: "Task[None] | None" = None  # which answers it

    def send(self, status: int, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """A whole answer with its length; the body stays away from an answer to HEAD."""
        self.close = self.close or close
        self.send_written(status, heads.written(headers), body)

    def send_written(self, status: int, lines: bytes, body: bytes) -> None:
        """The same with its headers as lines already (``heads.written``)."""
        if self.gone or self.started:
            return
        self.started = True
        if self.grants:
            lines += heads.written(self.grants)
        framing = b"content-length: %d\r\n" % len(body)
        if status == 204:  # noqa: PLR2004 -- RFC 9110 8.6
            framing = b""
        data = heads.head(status, lines, framing, close=self.close)
        if not self.is_head:
            data += body
        self.transport.write(data)
        self.done = True
        self.on_done(self.close)

    def start(self, status: int, lines: bytes) -> None:
        """The head of a stream, its headers as lines (``heads.written``). An HTTP/1.0 client gets no
        chunks: the close ends its body.
        """
        if self.gone or self.started:
            return
        self.started = True
        framing = heads.CHUNKED if self.chunked else b""
        if self.grants:
            lines += heads.written(self.grants)
        self._write(heads.head(status, lines, framing, close=self.close))

    def write(self, data: bytes) -> None:
        """One chunk, one write."""
        if not self.gone and not self.done and data:
            self._write(heads.chunk(data) if self.chunked else data)

    def finish(self) -> None:
        if not self.gone and not self.done:
            if self.chunked:
                self._write(heads.LAST_CHUNK)
            self._end()

    def abort(self) -> None:
        """Break off: the client sees a connection that did not end as it should."""
        if not self.done:
            self.done = True
            self.gone = True
            self.transport.abort()

    def leave(self) -> None:
        """The client has gone; told once."""
        if not self.gone:
            self.gone = True
            if self.on_gone is not None:
                self.on_gone()

    def forget(self) -> None:
        """Nobody listens any more: a request's objects then hold no ring, are freed as it ends, and
        the next one's take their places while these are in the CPU's caches.
        """
        self.on_gone = self.on_pause = self.on_resume = None

    def _end(self) -> None:
        self.done = True
        self.on_done(self.close)

    def _write(self, data: bytes) -> None:
        self.transport.write(data)
