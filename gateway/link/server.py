"""The control process's end of the link: one peer a data process.

A handler may answer (bytes) an ask, now or later; a plain message's answer is ignored. Handlers of
one peer start in the order of arrival; asynchronous ones run side by side, so that a slow SQL read
holds up no version poll. Only asks are held back where there are many: a plain message may be what
those that run are waiting for. Not here: what the messages mean (``gateway.controlplane``).
"""

import asyncio
import inspect
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from gateway.link.framing import ANSWER, FAILED, Frame, FrameError, Splitter, pack
from gateway.link.messages import Hello

READ_BYTES = 1 << 16
#: A peer that lets this much lie unread is parted; it comes back and gets a full load.
UNSENT_BYTES_MAX = 64 << 20
#: Asks of one peer answered at once, and those that wait their turn; more are told no.
ASKS_MAX = 64
ASKS_WAITING_MAX = 4_096
_log = logging.getLogger(__name__)


class Peer:
    """One connected data process. ``hello`` is None until it has said it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.hello: Hello | None = None
        self.version = 0  # of the snapshot it holds, as far as it was told or said

    def send(self, kind: str, body: bytes, number: int = 0) -> None:
        """Queue a message; a peer that does not read is cut off."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            _log.warning("a data process does not read its link; cut off")
            transport.abort()
            return
        self._writer.write(pack(kind, body, number))


Answer = bytes | None | Awaitable[bytes | None]
Handler = Callable[[Peer, bytes], Answer]


class LinkServer:
    """``handlers`` maps a kind to what is done with its body; ``on_parted`` hears of a peer's end."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = dict(handlers)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: set[Peer] = set()
        self.on_parted: Callable[[Peer], None] = lambda _: None

    async def serve(self, sock: socket.socket) -> None:
        """Listen on a bound unix socket; returns at once. ``close`` ends it."""
        self._server = await asyncio.start_unix_server(self._attend, sock=sock)

    def broadcast(self, kind: str, body: bytes) -> None:
        """To every peer that has said hello."""
        for peer in list(self.peers):
            if peer.hello is not None:
                peer.send(kind, body)

    async def close(self) -> None:
        """Stop listening, part from every peer, end what was being answered."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(writer)
        self.peers.add(peer)
        try:
            await self._serve(peer, reader)
        except (OSError, FrameError, msgspec.MsgspecError) as error:
            _log.warning("link to a data process lost: %s", error)
        except asyncio.CancelledError:
            pass  # closing; the stream server would log a cancelled callback as an error
        finally:
            self.peers.discard(peer)
            self._tasks.discard(task)
            writer.transport.abort()
            self.on_parted(peer)

    async def _serve(self, peer: Peer, reader: asyncio.StreamReader) -> None:
        splitter = Splitter()
        asks = _Asks()
        while data := await reader.read(READ_BYTES):
            for frame in splitter.feed(data):
                if frame.kind == "hello":
                    peer.hello = msgspec.msgpack.decode(frame.body, type=Hello)
                    peer.version = peer.hello.version
                if frame.number and asks.running >= ASKS_MAX:
                    if len(asks.waiting) < ASKS_WAITING_MAX:
                        asks.waiting.append(frame)
                    else:
                        peer.send(FAILED, b"", frame.number)
                else:
                    self._obey(peer, frame, asks)

    def _obey(self, peer: Peer, frame: Frame, asks: "_Asks") -> None:
        handler = self.handlers.get(frame.kind)
        try:
            answer = handler(peer, frame.body) if handler else None
        except Exception:  # noqa: BLE001 -- the wall: a handler's fault must not part the peer
            _log.exception("a %s message could not be obeyed", frame.kind)
            handler = answer = None
        if inspect.isawaitable(answer):
            asks.running += bool(frame.number)
            task = asyncio.ensure_future(self._answer_later(peer, frame, answer, asks))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif frame.number:
            known = handler is not None
            peer.send(ANSWER if known else FAILED, answer or b"", frame.number)

    async def _answer_later(
        self, peer: Peer, frame: Frame, answer: Awaitable[bytes | None], asks: "_Asks"
    ) -> None:
        try:
            body = await answer
        except Exception:  # noqa: BLE001 -- the wall, as above; the asker need not wait for it
            _log.exception("a %s message could not be obeyed", frame.kind)
            if frame.number:
                peer.send(FAILED, b"", frame.number)
        else:
            if frame.number:
                peer.send(ANSWER, body or b"", frame.number)
        asks.running -= bool(frame.number)
        while asks.waiting and asks.running < ASKS_MAX and peer in self.peers:
            self._obey(peer, asks.waiting.popleft(), asks)


class _Asks:
    """A peer's: how many are being answered, and who waits for a turn."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[Frame] = deque()
