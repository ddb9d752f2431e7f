"""A data process's end of the link: one connection, made again for ever.

Nothing a request waits for depends on it being there: ``send`` drops while away, ``ask`` raises
``LinkAway``. Handlers run on the loop, in the order of arrival, and must not block. Not here: what
the messages mean (``gateway.dataplane``).
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping

import msgspec

from gateway.link.framing import ANSWER, Frame, FrameError, Splitter, pack
from gateway.link.messages import Hello

READ_BYTES = 1 << 16
#: Above this much unsent, control does not read; dropping the connection is better than memory.
UNSENT_BYTES_MAX = 8 << 20
_log = logging.getLogger(__name__)


class LinkAway(Exception):
    """Control is not there, did not answer in time, or could not answer."""


class LinkClient:
    """``hello()`` is asked at each connect; ``handlers`` maps a kind to what obeys its body."""

    def __init__(
        self,
        path: str,
        hello: Callable[[], Hello],
        handlers: Mapping[str, Callable[[bytes], None]],
    ) -> None:
        self._path = path
        self._hello = hello
        self._handlers = handlers
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._heard_s = time.monotonic()

    @property
    def connected(self) -> bool:
        return self._writer is not None

    @property
    def heard_s(self) -> float:
        """When control last said anything (``time.monotonic``); at first, when this was made."""
        return self._heard_s

    async def run(self) -> None:
        """Connect, serve, connect again: 50 ms after the first failure, at most 1 s, jittered."""
        delay_s = 0.05
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
                delay_s = min(1.0, delay_s * 2)
                continue
            delay_s = 0.05
            try:
                await self._serve(reader, writer)
            except (OSError, FrameError) as error:
                _log.warning("link lost: %s", error)
            finally:
                self._part(writer)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter

    def send(self, kind: str, body: bytes) -> None:
        """Queue a message; dropped while control is away."""
        if self._writer is not None:
            self._write(self._writer, pack(kind, body))

    async def ask(self, kind: str, body: bytes, timeout_s: float = 2.0) -> bytes:
        """Control's answer; raises ``LinkAway``."""
        if self._writer is None:
            raise LinkAway("control is away")
        self._number = self._number % 0xFFFFFFFF + 1
        number = self._number
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._write(self._writer, pack(kind, body, number))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise LinkAway(f"no answer to {kind} within {timeout_s:g} s") from None
        finally:
            self._asked.pop(number, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        splitter = Splitter()
        writer.write(pack("hello", msgspec.msgpack.encode(self._hello())))
        self._writer = writer
        while data := await reader.read(READ_BYTES):
            self._heard_s = time.monotonic()
            for frame in splitter.feed(data):
                self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        if frame.number:
            answer = self._asked.pop(frame.number, None)
            if answer is None or answer.done():
                return  # it came after its question gave up
            if frame.kind == ANSWER:
                answer.set_result(frame.body)
            else:
                answer.set_exception(LinkAway("control could not answer"))
            return
        handler = self._handlers.get(frame.kind)
        if handler is None:
            return  # a newer control says more than we know
        try:
            handler(frame.body)
        except Exception:  # noqa: BLE001 -- the wall: one bad message must not part us for good
            _log.exception("a %s message could not be obeyed", frame.kind)

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if writer.transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            writer.transport.abort()
            return
        writer.write(data)

    def _part(self, writer: asyncio.StreamWriter) -> None:
        self._writer = None
        # Not awaited: the socket is closed at once, and a peer that is gone has nothing to say.
        with contextlib.suppress(OSError):
            writer.transport.abort()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkAway("control went away"))
        self._asked.clear()
