"""A piece of network between gateway and engine that can be cut, or hold everything back.

Bytes pass as they come. Cut: both sides see their connection die, and new ones die at once. Held:
nothing passes and nobody is told, as when a switch drops packets.
"""

import asyncio
from collections.abc import Callable


class Tap:
    """Listens on a free port of loopback and leads to ``port``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self.cut_now = False
        self.held = False

    async def start(self) -> "Tap":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self), "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self.cut_now = True
        for end in list(self.ends):
            end.transport.abort()

    def hold(self) -> None:
        self.held = True
        for end in self.ends:
            end.transport.pause_reading()

    def mend(self) -> None:
        self.cut_now = self.held = False
        for end in self.ends:
            end.transport.resume_reading()

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)


class _End(asyncio.Protocol):
    """One side of a passing connection."""

    transport: asyncio.Transport

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.other: _End | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.tap.ends.add(self)
        if self.tap.held:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        return False  # half a connection is none here

    def connection_lost(self, _error: Exception | None) -> None:
        self.tap.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()


class _Near(_End):
    """The gateway's side; it dials the engine."""

    _dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport) -> None:
        if self.tap.cut_now:
            transport.abort()
            self.tap.ends.discard(self)
            self.transport = transport
            return
        super().connection_made(transport)
        self._dialling = asyncio.ensure_future(self._dial(lambda: _End(self.tap)))

    async def _dial(self, make: Callable[[], _End]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, far = await loop.create_connection(make, "127.0.0.1", self.tap.port)
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            far.transport.abort()
            return
        self.other, far.other = far, self
        for data in self.early:
            far.transport.write(data)
        self.early.clear()
