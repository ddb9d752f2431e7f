"""The front door: HTTP/1.1 on an asyncio protocol, one request in flight a connection.

It reads whole requests under limits and deadlines and hands each to one handler; it decides nothing
about tenants or money. Two readers must agree on a head: ours, which leaves no room for doubt, and
llhttp. The socket is read throughout a running request, since a FIN behind a paused reader is an
abort nobody sees; what a client sends ahead of its turn is kept up to a bound.
"""

import asyncio
import logging
import resource
import socket
from asyncio import Task, Transport
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.contract.errors import (
    BadRequestHead,
    BodyTooLarge,
    ContractError,
    HeadTooLarge,
    NoCapacity,
    RequestTimeout,
)
from gateway.settings import WireSettings
from gateway.wire import heads
from gateway.wire.chunked import ChunkedBody
from gateway.wire.deadlines import Deadline, Wheel
from gateway.wire.guard import Head, read_head
from gateway.wire.reply import Reply
from gateway.wire.request import Networks, Request, client_address

__all__ = ["Reply", "Request", "Server"]

Handler = Callable[[Request, Reply], Awaitable[None]]
Refuse = Callable[[Exception], tuple[int, list[tuple[bytes, bytes]], bytes]]
#: Left for engines, the journal, the link: of the process's file descriptors.
DESCRIPTORS_KEPT = 512
log = logging.getLogger("gateway.wire.server")


class _Silent:
    """llhttp's callbacks are not needed: it only has to agree."""


class Server:
    """One listening socket and its connections."""

    def __init__(
        self,
        settings: WireSettings,
        handler: Handler,
        refuse: Refuse,
        wheel: Wheel,
        trusted: Networks = (),
    ) -> None:
        self.settings = settings
        self.handler = handler
        self.refuse = refuse
        self.wheel = wheel
        self.trusted = trusted
        self.draining = False
        self.refused: Counter[str] = Counter()
        self.by_address: Counter[str] = Counter()
        self.tasks: set[Task[None]] = set()
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self.connections_max = min(settings.connections_max, _descriptors() - DESCRIPTORS_KEPT)

    @property
    def connections(self) -> int:
        return len(self._open)

    async def serve(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=sock, backlog=4096)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def drain(self, deadline_s: float) -> None:
        """Idle connections close now, running ones after their answer; back when all are gone or
        time is out.
        """
        self.draining = True
        for connection in list(self._open):
            connection.close_if_idle()
        if self._open and deadline_s > 0:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), deadline_s)
            except TimeoutError:
                return

    def close(self) -> None:
        self.stop_accepting()
        for connection in list(self._open):
            connection.transport.abort()

    def opened(self, connection: "Connection") -> bool:
        """False when there is no room for it."""
        if len(self._open) >= self.connections_max or self.draining:
            return False
        if self.by_address[connection.peer] >= self.settings.connections_per_address_max:
            return False
        self._open.add(connection)
        self.by_address[connection.peer] += 1
        return True

    def closed(self, connection: "Connection") -> None:
        if connection in self._open:
            self._open.discard(connection)
            self.by_address[connection.peer] -= 1
            if not self.by_address[connection.peer]:
                del self.by_address[connection.peer]
        if not self._open:
            self._empty.set()


class Connection(asyncio.Protocol):
    """A client's connection: reads one request at a time, in order."""

    transport: Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._settings = server.settings
        self._buffer = bytearray()
        self._head: Head | None = None
        self._chunks: ChunkedBody | None = None
        self._reply: Reply | None = None
        self._deadline: Deadline | None = None
        self._arrived_s = 0.0
        self._body_began_s = 0.0
        self._reading = True
        self._eof = False
        self._closing = False
        self._writing_paused = False
        self.peer = ""

    # -- the transport's callbacks ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("Transport", transport)  # uvloop's is none by name
        self._loop = asyncio.get_running_loop()
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        if not self._server.opened(self):
            self._refuse(NoCapacity())
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await(self._settings.idle_s, self._idle_over)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._reply is not None:
            self._keep(data)
            return
        if not self._buffer and self._head is None:
            self._begin()
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        """Half-closing is leaving."""
        self._eof = True
        if self._reply is not None:
            self._reply.leave()
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._closing = True
        self._cancel()
        if self._reply is not None and not self._reply.done:
            self._reply.leave()
        self._server.closed(self)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._await(self._settings.stall_s, self._stalled)
        if self._reply is not None and self._reply.on_pause is not None:
            self._reply.on_pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._cancel()
        if self._reply is None and not self._closing:
            self._go_on()
        if self._reply is not None and self._reply.on_resume is not None:
            self._reply.on_resume()

    # -- reading ------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._arrived_s = self._loop.time()
        self._await(self._settings.head_s, self._too_slow)

    def _keep(self, data: bytes) -> None:
        """Sent ahead of its turn: kept up to the bound, then the socket is left unread."""
        self._buffer += data
        if len(self._buffer) > self._settings.pipelined_bytes_max and self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _advance(self) -> None:
        try:
            if self._head is None and not self._read_head():
                return
            body = self._read_body()
        except ContractError as error:
            self._refuse(error)
            return
        if body is not None:
            self._hand_over(body)

    def _read_head(self) -> bool:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112 2.2: an empty line before a request is skipped
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n")
        limit = self._settings.head_bytes_max
        if end < 0:
            if len(buffer) > limit:
                raise HeadTooLarge
            if b"\n\n" in buffer or b"\0" in buffer:
                raise BadRequestHead("bare LF or NUL in the head")
            return False
        if end + 4 > limit:
            raise HeadTooLarge
        data = bytes(buffer[: end + 4])
        head = read_head(data, self._settings)
        try:
            HttpRequestParser(_Silent()).feed_data(data)
        except HttpParserUpgrade:
            pass  # an offer to speak something else, which a server may ignore (RFC 9110 7.8)
        except HttpParserError:
            raise BadRequestHead("the head reads differently to another parser") from None
        del buffer[: end + 4]
        self._head = head
        limit = self._settings.body_bytes_max
        if head.length is None:
            self._chunks = ChunkedBody(limit)
        elif head.length > limit:
            raise BodyTooLarge(limit)
        if head.length != 0:
            self._body_began_s = self._loop.time()
            self._await(self._settings.body_s, self._too_slow)
            if head.expects_continue:
                self.transport.write(heads.CONTINUE)
        return True

    def _read_body(self) -> bytes | None:
        """The whole body, or None while it is not all here."""
        head = self._head
        assert head is not None
        if self._chunks is not None:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._chunks.feed(data)
            if not self._chunks.done:
                self._check_rate(sum(map(len, self._chunks.parts)))
                return None
            self._buffer += self._chunks.rest
            return b"".join(self._chunks.parts)
        length = head.length or 0
        if len(self._buffer) < length:
            self._check_rate(len(self._buffer))
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _check_rate(self, received: int) -> None:
        """A body that drips is refused before its deadline, once it had a few seconds."""
        elapsed_s = self._loop.time() - self._body_began_s
        grace_s = min(5.0, self._settings.body_s)
        if elapsed_s > grace_s and received < elapsed_s * self._settings.body_bytes_per_s_min:
            raise RequestTimeout

    def _hand_over(self, body: bytes) -> None:
        head = self._head
        assert head is not None
        self._cancel()
        forwarded = None
        if self._server.trusted:
            values = [value for name, value in head.headers if name == b"x-forwarded-for"]
            forwarded = b",".join(values) or None
        request = Request(
            head.method,
            head.target,
            head.headers,
            body,
            client_address(self.peer, forwarded, self._server.trusted),
            self._arrived_s,
        )
        reply = self._reply = Reply(
            self.transport,
            is_head=head.method == "HEAD",
            http10=head.http10,
            close=head.close or self._server.draining,
            on_done=self._answered,
        )
        task = self._loop.create_task(self._serve(request, reply), name="request")
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _serve(self, request: Request, reply: Reply) -> None:
        try:
            await self._server.handler(request, reply)
        except Exception as error:  # the wire's wall: a handler's bug must not hang a client
            log.exception("the handler failed")
            if not reply.started and not reply.gone:
                status, headers, body = self._server.refuse(error)
                reply.send(status, headers, body, close=True)
        if not reply.done and not reply.gone:
            reply.abort()

    def _answered(self, close: bool) -> None:  # noqa: FBT001 -- a callback of one fact
        """The answer is written; the next request of the pipeline begins."""
        self._reply = None
        self._head = None
        self._chunks = None
        self._cancel()
        if close or self._server.draining or self._eof:
            self._close()
            return
        if self._writing_paused:
            self._await(self._settings.stall_s, self._stalled)  # its reader is behind: it waits
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The next request: the one that waits already, or one to come."""
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        if self._buffer:
            self._begin()
            self._loop.call_soon(self._next)
        else:
            self._await(self._settings.idle_s, self._idle_over)

    def _next(self) -> None:
        if not self._closing and self._reply is None and self._buffer:
            self._advance()

    # -- endings ------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        if self._reply is None and not self._buffer and self._head is None:
            self._close()

    def _close(self) -> None:
        """Close when all is written; a reader that does not read gets no more than the stall."""
        self._closing = True
        self._await(self._settings.stall_s, self.transport.abort)
        self.transport.close()

    def _refuse(self, error: Exception) -> None:
        """Answer in the contract's shape and close: what follows on this socket is not trusted."""
        self._server.refused[type(error).__name__] += 1
        status, headers, body = self._server.refuse(error)
        framing = heads.sized(len(body))
        self.transport.write(heads.head(status, headers, framing, close=True) + body)
        self._buffer.clear()
        self._close()

    def _too_slow(self) -> None:
        if not self._closing:
            self._refuse(RequestTimeout())

    def _idle_over(self) -> None:
        self._close()

    def _stalled(self) -> None:
        """A reader that does not read has left."""
        if self._reply is not None:
            self._reply.leave()
        self.transport.abort()

    def _await(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._cancel()
        self._deadline = self._server.wheel.add(delay_s, callback)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _descriptors() -> int:
    """The process's file descriptors, raised to what it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    return soft if soft > 0 else 1 << 20
