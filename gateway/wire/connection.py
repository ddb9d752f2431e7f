"""A client's connection: HTTP/1.1 on an asyncio protocol, one request in flight.

It reads whole requests under limits and deadlines and hands each to the handler. Two readers must
agree on a head (``head_cache``): ours, which leaves no room for doubt, and llhttp. The socket is read throughout a
running request, since a FIN behind a paused reader is an abort nobody sees; what a client sends
ahead of its turn is kept up to a bound. Longer than most files: it is one state machine. Not here:
what a head may be (``guard``), who may connect (``lobby``).
"""

import asyncio
import logging
import socket
import struct
from asyncio import Transport
from collections.abc import Callable
from typing import cast

from gateway.contract.errors import (
    BadRequestHead,
    BodyTooLarge,
    ContractError,
    HeadTooLarge,
    NoCapacity,
    RequestTimeout,
)
from gateway.wire import heads
from gateway.wire.chunked import ChunkedBody
from gateway.wire.guard import Head
from gateway.wire.lobby import TURNED_AWAY_MAX, Lobby
from gateway.wire.proxy_header import read_proxy
from gateway.wire.reply import Reply
from gateway.wire.request import Request, client_address

#: How often the rate of a body is looked at; its first seconds are free.
RATE_CHECK_S = 5.0
#: How long one that was too slow, or found no room, may take to read so.
PARTING_S = 1.0
#: More than the longest PROXY header.
ANNOUNCEMENT_BYTES_MAX = 8192
#: Linger on, for no time.
AT_ONCE = struct.pack("ii", 1, 0)
log = logging.getLogger("gateway.wire.connection")


class Connection(asyncio.Protocol):
    """``peer``: the client's address, as its socket or a trusted PROXY header has it."""

    transport: Transport

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby
        self._settings = lobby.settings
        self._loop = asyncio.get_running_loop()
        self._buffer: bytes | bytearray = b""
        self._head: Head | None = None
        self._length: int | None = 0  # the body's; None when chunked
        self._chunks: ChunkedBody | None = None
        self._reply: Reply | None = None
        self._deadline = lobby.wheel.add(self._settings.idle_s, self._due)
        self._on_due: Callable[[], None] = self._idle_over
        self._arrived_s = 0.0  # 0: between requests
        self._body_began_s = 0.0
        self._searched = 0  # bytes of a head in which no end was found
        self._unsent = 0  # bytes a reader that is behind had to read
        self._announced = True  # False while a PROXY header is to come
        self._counted = False
        self._reading = True
        self._eof = False
        self._closing = False
        self._writing_paused = False
        self.peer = ""

    # -- the transport's callbacks ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("Transport", transport)  # uvloop's is none by name
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        lobby = self._lobby
        if not lobby.has_room():
            self._turn_away()
            return
        lobby.members.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if lobby.is_proxy(self.peer):
            self._announced = not lobby.proxy_protocol
            if not self._announced:
                self._await(self._settings.head_s, self._too_slow)
        else:
            self._count()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # what a refused client still sends
        if not self._buffer:
            if self._head is None and self._reply is None and self._take_whole(data):
                return
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            self._buffer += data
        else:
            self._buffer = bytearray(self._buffer) + data
        if self._reply is None and self._reading:
            self._advance()
        elif self._reading and len(self._buffer) > self._settings.pipelined_bytes_max:
            # Sent ahead of its turn: kept up to the bound, then the socket is left unread.
            self._pause_reading()

    def eof_received(self) -> bool:
        """Half-closing is leaving."""
        self._eof = True
        if self._reply is not None:
            self._reply.leave()
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._closing = True
        self._deadline.cancel()
        if self._reply is not None and not self._reply.done:
            self._reply.leave()
        if self._counted:
            self._lobby.give_back(self.peer)
        self._lobby.turned_away.discard(self)
        self._lobby.left(self)

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._closing:
            return  # it has its last deadline already
        self._watch_reader()
        if self._reply is not None and self._reply.on_pause is not None:
            self._reply.on_pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._closing:
            return
        self._deadline.rest()
        if self._reply is None:
            self._go_on()
        elif self._reply.on_resume is not None:
            self._reply.on_resume()

    # -- who it is ----------------------------------------------------------------------------

    def _count(self) -> None:
        """One more of its address; too many are turned away."""
        self._counted = self._lobby.take(self.peer)
        if not self._counted:
            self._lobby.left(self)
            self._turn_away()

    def _turn_away(self) -> None:
        lobby = self._lobby
        if len(lobby.turned_away) >= TURNED_AWAY_MAX:
            self._closing = True
            self.transport.abort()
            return
        lobby.turned_away.add(self)
        self._refuse(NoCapacity(), PARTING_S)

    def _read_announcement(self) -> bool:
        """The PROXY header of a trusted proxy; False while it is not all here."""
        read = read_proxy(bytes(self._buffer[:ANNOUNCEMENT_BYTES_MAX]))
        if read is None:
            return False
        address, size = read
        self._buffer = self._buffer[size:]
        self._announced = True
        self.peer = address or self.peer
        if address:
            self._count()
        return not self._closing

    # -- reading ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Read on as far as the bytes go; a whole request is handed over."""
        try:
            if not self._announced and not self._read_announcement():
                return
            if self._head is None and not self._read_head():
                return
            body = self._read_body()
        except ContractError as error:
            self._refuse(error)
            return
        if body is not None:
            self._hand_over(body)

    def _take_whole(self, data: bytes) -> bool:
        """A whole request in one read, under a head that was judged before: the everyday case."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._lobby.heads.exact.get(data[:end])
        if known is None or not self._reading or not self._announced:
            return False
        head, length = known
        if length != len(data) - end or length > self._settings.body_bytes_max:
            return False
        if not self._arrived_s:
            self._arrived_s = self._loop.time()
        self._head = head
        self._hand_over(data[end:])
        return True

    def _read_head(self) -> bool:
        """A whole head, judged; False while it is not all here."""
        if not self._arrived_s:
            self._arrived_s = self._loop.time()
        while self._buffer[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request
            self._buffer = self._buffer[2:]
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", self._searched and max(0, self._searched - 3))
        limit = self._settings.head_bytes_max
        if end < 0:
            self._wait_for_head(limit)
            return False
        if end + 4 > limit:
            raise HeadTooLarge
        self._head, self._length = self._lobby.heads.read(bytes(buffer[: end + 4]))
        self._buffer = buffer[end + 4 :]
        limit = self._settings.body_bytes_max
        if self._length is None:
            self._chunks = ChunkedBody(limit)
        elif self._length > limit:
            raise BodyTooLarge(limit)
        return True

    def _wait_for_head(self, limit: int) -> None:
        buffer = self._buffer
        if len(buffer) > limit:
            raise HeadTooLarge
        if b"\n\n" in buffer or b"\0" in buffer:
            raise BadRequestHead("bare LF or NUL in the head")
        if not self._searched:
            self._await(self._settings.head_s, self._too_slow)
        self._searched = max(1, len(buffer))

    def _read_body(self) -> bytes | None:
        """The whole body, or None while it is not all here."""
        head = self._head
        assert head is not None
        buffer = self._buffer
        if self._chunks is not None:
            return self._read_chunks(self._chunks)
        length = self._length or 0
        if len(buffer) == length:
            self._buffer = b""
            return bytes(buffer)
        if len(buffer) > length:
            self._buffer = bytes(buffer[length:])
            return bytes(memoryview(buffer)[:length])
        self._wait_for_body(head)
        return None

    def _read_chunks(self, chunks: ChunkedBody) -> bytes | None:
        chunks.feed(bytes(self._buffer))
        self._buffer = b""
        if chunks.done:
            self._buffer = chunks.rest
            return bytes(chunks.body)
        if chunks.behind:
            self._pause_reading()
            self._loop.call_soon(self._next)
        else:
            self._resume_reading()
        assert self._head is not None
        self._wait_for_body(self._head)
        return None

    def _wait_for_body(self, head: Head) -> None:
        if not self._body_began_s:
            self._body_began_s = self._loop.time()
            self._await(min(RATE_CHECK_S, self._settings.body_s), self._check_rate)
            if head.expects_continue and not self._received():
                self.transport.write(heads.CONTINUE)

    def _received(self) -> int:
        """Bytes of the body so far."""
        if self._chunks is not None:
            return len(self._chunks.body) + len(self._chunks.rest)
        return len(self._buffer)

    def _check_rate(self) -> None:
        """A body must come whole in its time, and drip no slower than the least rate."""
        elapsed_s = self._loop.time() - self._body_began_s
        left_s = self._settings.body_s - elapsed_s
        if left_s <= 0 or self._received() < elapsed_s * self._settings.body_bytes_per_s_min:
            self._too_slow()
        else:
            self._await(min(RATE_CHECK_S, left_s), self._check_rate)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    # -- answering ----------------------------------------------------------------------------

    def _hand_over(self, body: bytes) -> None:
        """A whole request: to the handler, or answered here when it is a browser's question."""
        head = self._head
        assert head is not None
        self._deadline.rest()
        if not self._reading:
            self._resume_reading()
        if len(self._buffer) > self._settings.pipelined_bytes_max:
            self._pause_reading()
        lobby = self._lobby
        reply = self._reply = Reply(
            self.transport,
            head.method == "HEAD",
            not head.http10,
            head.close or lobby.draining,
            self._answered,
        )
        if lobby.cors is not None:
            reply.grants = lobby.cors.grants(head.fields)
            allowed = lobby.cors.preflight(head.method, head.fields)
            if allowed is not None:
                reply.send(204, allowed, b"")
                return
        peer = self.peer
        if lobby.trusted:
            peer = client_address(peer, head.headers, lobby.trusted)
        request = Request(head, body, peer, self._arrived_s, head.method, head.path, head.query)
        task = reply.task = self._loop.create_task(self._serve(request, reply), name="request")
        lobby.tasks.add(task)  # a loop keeps none alive by itself

    async def _serve(self, request: Request, reply: Reply) -> None:
        try:
            await self._lobby.handler(request, reply)
        except Exception as error:  # the wire's wall: a handler's bug must not hang a client
            log.exception("the handler failed")
            if not reply.started and not reply.gone:
                status, headers, body = self._lobby.refuse(error)
                reply.send(status, headers, body, close=True)
        if not reply.done and not reply.gone:
            reply.abort()
        self._lobby.tasks.discard(reply.task)
        reply.task = None

    def _answered(self, close: bool) -> None:  # noqa: FBT001 -- a callback of one fact
        """The answer is written; the next request of the pipeline begins."""
        self._reply = None
        self._head = None
        self._chunks = None
        self._arrived_s = 0.0
        self._body_began_s = 0.0
        self._searched = 0
        if close or self._lobby.draining or self._eof:
            if self._buffer and not self._eof:
                self._linger(max(self._settings.linger_s, self._settings.stall_s))
            else:
                self._close()
        elif self._writing_paused:
            self._watch_reader()  # it is behind: the next request waits for it
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The next request: the one that waits already, or one to come."""
        if not self._reading:
            self._resume_reading()
        if self._buffer:
            self._loop.call_soon(self._next)
        else:
            self._await(self._settings.idle_s, self._idle_over)

    def _next(self) -> None:
        if not self._closing and self._reply is None:
            self._advance()

    # -- endings ------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        if self._reply is None and not self._buffer and self._head is None:
            self._close()

    def _close(self) -> None:
        """Close when all is written; a reader that does not read gets no more than the stall."""
        self._closing = True
        self._watch_reader()
        self.transport.close()

    def _linger(self, delay_s: float) -> None:
        """Say no more, and read on into nothing for a while: closing with bytes unread would reset
        the connection, and the client might never see its answer (RFC 9112 section 9.6).
        """
        self._closing = True
        self._buffer = b""
        self._chunks = None
        if self._eof or not self.transport.can_write_eof():
            self._close()
            return
        self.transport.write_eof()
        self._resume_reading()
        self._await(delay_s, self.transport.abort)

    def _refuse(self, error: Exception, linger_s: float | None = None) -> None:
        """Answer in the contract's shape and close: what follows on this socket is not trusted."""
        lobby = self._lobby
        lobby.on_refused(type(error).__name__)
        status, headers, body = lobby.refuse(error)
        if lobby.cors is not None and self._head is not None:
            headers = [*headers, *lobby.cors.grants(self._head.fields)]
        self.transport.write(
            heads.head(status, heads.written(headers), heads.sized(len(body)), close=True) + body
        )
        self._linger(self._settings.linger_s if linger_s is None else linger_s)

    def _too_slow(self) -> None:
        self._refuse(RequestTimeout(), PARTING_S)

    def _idle_over(self) -> None:
        self._close()

    def _watch_reader(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._await(self._settings.stall_s, self._stalled)

    def _stalled(self) -> None:
        """A reader that does not read, or drips, has left; one that is slow may go on."""
        read = self._unsent - self.transport.get_write_buffer_size()
        if read > self._settings.stall_s * self._settings.body_bytes_per_s_min:
            self._watch_reader()
            return
        if self._reply is not None:
            self._reply.leave()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # A reset: the kernel must not hold megabytes for a client that will not read them.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()

    def _await(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._on_due = callback
        self._deadline.move(delay_s)

    def _due(self) -> None:
        self._on_due()
