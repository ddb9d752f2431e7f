"""One keep-alive connection to an engine: a request out, its response in, nothing else.

Bytes before a request or beyond a response poison nothing: the socket is closed and the next
client never sees them. Closing it is how an engine learns that nobody waits. Parsed by llhttp.
"""

import asyncio
import logging
import re
import select
from asyncio import Transport
from collections.abc import Callable
from typing import Protocol, cast

import msgspec
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)

#: Of a head, its interim answers included; and of what stands beside the body: extensions, trailers.
HEAD_BYTES_MAX = 65_536
#: What a piece of body may bring with it: the lines of its chunk.
CHUNK_LINES_BYTES = 32
#: Where an event ends with its chunk: the parser then stands before the next chunk.
FRAME_END, READ_END = b"}\n\n", b"}\n\n\r\n"
STATUS_MIN, STATUS_MAX = 100, 599
#: A body up to here goes out with its head in one write; a copy of a larger one costs more than that.
JOINED_BYTES = 65_536
VERSIONS = ("1.1", "1.0")
#: Atomic, not possessive, for the reason told at ``contract.usage.PLAIN_OBJECT``.
_OTHER = (
    rb"(?>(?:(?!content-|connection|transfer-|trailer|upgrade|keep-alive|proxy-)"
    rb"[a-z0-9-]++: [ -~]*+\r\n)*)"
)
#: The head of a whole answer as engines write it: one length, one kind of content, nothing else that
#: could frame it or close its connection. Any other spelling or order is llhttp's to read.
PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 200 OK\r\n" + _OTHER + rb"(?:content-length: ([0-9]{1,9}+)\r\n" + _OTHER +
    rb"content-type: ([!-~ ]++)\r\n|content-type: ([!-~ ]++)\r\n" + _OTHER +
    rb"content-length: ([0-9]{1,9}+)\r\n)" + _OTHER + rb"\r\n",
    re.IGNORECASE,
)  # fmt: skip
log = logging.getLogger("gateway.wire.upstream")


class UpstreamCut(msgspec.Struct, frozen=True):
    """The response did not end as it said. ``reused``: the socket had served before."""

    before_any_byte: bool
    reused: bool
    reason: str


class Receiver(Protocol):
    """What a response is told to, in order: one head, any bodies, then an end or a cut."""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_cut(self, failure: UpstreamCut) -> None: ...


class Taker(Receiver, Protocol):
    """A receiver that takes what needs no parser. ``take_chunks``: of a read that begins with a chunk,
    how many bytes it took. ``take_answer``: a whole answer of status 200, head and body in one read;
    true where it was taken, and then nothing more is told of it.
    """

    def take_chunks(self, data: bytes) -> int: ...

    def take_answer(self, content_type: bytes, body: bytes) -> bool: ...


class Upstream(asyncio.Protocol):
    """``reusable`` once a response ended cleanly. ``paused``: it is not read from. ``idle_since_s`` is the pool's."""

    __slots__ = (
        "_any_byte",
        "_at_chunk",
        "_beside",
        "_beyond",
        "_body_end",
        "_chunked",
        "_closes",
        "_complete",
        "_framed",
        "_head_done",
        "_header_bytes",
        "_headers",
        "_keep",
        "_parser",
        "_poll",
        "_receiver",
        "_refused",
        "_taker",
        "alive",
        "idle_since_s",
        "paused",
        "served",
        "transport",
    )
    transport: Transport

    def __init__(self) -> None:
        self.alive = True
        self.served = 0
        self.idle_since_s = 0.0
        self._receiver: Receiver | None = None
        self._parser: HttpResponseParser | None = None
        self._any_byte = False
        self.paused = False
        self._head_done = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._framed = False  # the head says where the body ends
        self._chunked = False
        self._complete = False
        self._keep = False
        self._beyond = False  # bytes came after the response's end
        self._header_bytes = 0  # names and values of interim answers
        self._beside = 0  # bytes that were no body, less what chunks may bring
        self._poll: select.poll | None = None
        self._refused = ""  # why this response is not to be had
        self._closes = False  # HTTP/1.0, or it said that it closes
        self._taker: Callable[[bytes], int] | None = None
        self._at_chunk = False  # the next byte is the first of a chunk
        self._body_end = b""  # of the last body bytes

    @property
    def reusable(self) -> bool:
        return self.alive and self._receiver is None and not self.transport.is_closing()

    def quiet(self) -> bool:
        """Nothing waits in the socket, unread by the loop: no byte that nobody asked for, no end.

        The loop reads only between two turns of ours; without this look, bytes sent ahead would be
        taken for the answer to the next request.
        """
        if self._poll is None:
            sock = self.transport.get_extra_info("socket")
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Begin a request; the receiver hears of its response from now on."""
        self._receiver = receiver
        self._any_byte = self._head_done = False
        if not self.alive:
            asyncio.get_running_loop().call_soon(self._cut, "the connection had closed")
            return
        if len(body) <= JOINED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def pause(self) -> None:
        if self.alive and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self.alive and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once and tell nobody: the engine stops working on it."""
        self._receiver = None
        self._at_chunk = False
        self.alive = False
        self.transport.abort()

    # -- the transport's callbacks ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("Transport", transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        if self._at_chunk and self._taker is not None:
            taken = self._taker(data)
            if taken == len(data):
                return
            data = data[taken:]
            self._at_chunk = False
        if self._receiver is None:
            self.abort()  # nobody asked: this socket is not trusted with a request
            return
        if not self._any_byte:
            self._any_byte = True
            if self._take_answer(data):
                return
            self._begin_parsing()
        assert self._parser is not None
        self._beside += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError:  # a receiver's bug is no engine's fault: it is told
            log.exception("a receiver failed")
            self._cut("our own receiver failed")
            return
        except (HttpParserError, HttpParserUpgrade):
            # Bytes beyond a response that had ended: it is whole, the socket is not trusted.
            if self._complete:
                self._beyond = True
                self._finish()
            else:
                self._cut("the response is not HTTP")
            return
        if self._refused:
            self._cut(self._refused)
        elif self._complete:
            self._finish()
        elif self._beside > HEAD_BYTES_MAX:
            self._cut("the response has too much beside its body")
        else:
            self._beside = max(0, self._beside)
            # The body ended before these two bytes: they are the end of its chunk.
            self._at_chunk = (
                self._chunked and self._body_end == FRAME_END and data.endswith(READ_END)
            )

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._receiver is None:
            return
        if self._closes and self._head_done and not self._framed and exc is None:
            self._finish()  # the close ends a body without a length, where one was announced
            return
        self._cut("the engine closed the connection")

    def _take_answer(self, data: bytes) -> bool:
        """The usual whole answer, in one read: nothing about it is left for a parser to find."""
        receiver = self._receiver
        take = getattr(receiver, "take_answer", None)
        if take is None or self.transport.get_write_buffer_size():
            return False
        plain = PLAIN_HEAD.match(data)
        if plain is None:
            return False
        length, kind, other_kind, other_length = plain.groups()
        body = data[plain.end() :]
        if len(body) != int(length or other_length):
            return False  # more is to come, or it is more than one answer
        self._receiver = None
        self.served += 1
        try:
            taken: bool = take(kind or other_kind, body)
        except Exception:  # a receiver's bug is no engine's fault: it is told
            log.exception("a receiver failed")
            self._receiver = receiver
            self._cut("our own receiver failed")
            return True
        if not taken:
            self.served -= 1
            self._receiver = receiver
        return taken

    def _begin_parsing(self) -> None:
        self._parser = HttpResponseParser(self)
        self._complete = self._framed = self._chunked = False
        self._keep = self._beyond = self._closes = False
        self._header_bytes = self._beside = 0
        self._refused = ""
        self._headers = []
        self._body_end = b""
        self._taker = getattr(self._receiver, "take_chunks", None)
        self._at_chunk = False

    # -- llhttp's callbacks -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._beyond = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._beyond or self._head_done:
            return  # a trailer: it comes too late to mean anything
        name = name.lower()
        self._headers.append((name, value))
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            if self._chunked or value.lower() != b"chunked":
                self._refused = "the response has a transfer coding that nobody asked for"
            self._framed = self._chunked = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            self._refused = "the response is compressed, which nobody asked for"
        elif name == b"connection" and b"close" in value.lower():
            self._closes = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._beyond:
            return
        # A head is no larger than all that came so far: most need no adding up.
        if self._beside > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX:
            self._refused = "the response head is too large"
        if self._refused:
            return
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if not STATUS_MIN <= status <= STATUS_MAX or version not in VERSIONS:
            self._refused = "the response has no status of HTTP/1"
            return
        if status < 200:  # noqa: PLR2004 -- an interim answer is skipped; the final one follows
            self._header_bytes = self._head_bytes()
            self._headers = []
            self._framed = self._chunked = self._closes = False
            return
        self._closes = self._closes or version == "1.0"
        self._head_done = True
        if self._receiver is not None:
            self._receiver.on_head(status, self._headers)

    def _head_bytes(self) -> int:
        """Names and values of this head and of the interim ones before it."""
        return self._header_bytes + sum([len(k) + len(v) + 4 for k, v in self._headers])

    def on_body(self, data: bytes) -> None:
        self._beside -= len(data) + CHUNK_LINES_BYTES
        self._body_end = data[-3:]
        if self._receiver is not None and not self._beyond and not self._refused:
            self._receiver.on_body(data)

    def on_message_complete(self) -> None:
        if self._head_done and not self._complete:
            self._complete = True
            self._keep = self._parser is not None and self._parser.should_keep_alive()

    # -- endings ------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._at_chunk = False
        self._taker = None
        receiver, self._receiver = self._receiver, None
        if self._beyond or not self._keep or self.transport.get_write_buffer_size():
            self.alive = False
            self.transport.abort()
        self.served += 1
        if receiver is not None:
            receiver.on_end()

    def _cut(self, reason: str) -> None:
        self._at_chunk = False
        self._taker = None
        receiver, self._receiver = self._receiver, None
        self.alive = False
        self.transport.abort()
        if receiver is not None:
            receiver.on_cut(UpstreamCut(not self._any_byte, self.served > 0, reason))
