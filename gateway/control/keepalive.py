"""How long an engine keeps an idle connection: asked once, then watched until it closes.

An engine that closes sooner than we stop reusing turns requests away that it never saw (vLLM's
server keeps 5 s). Not here: what follows from it (``gateway.control.diagnosis``).
"""

import asyncio
from typing import cast

from gateway.wire.dial import Address, ConnectFailed, dial

_TIMEOUT_S = 5.0


class _Idle(asyncio.Protocol):
    """Sends one request; notes when bytes last came, and when the other side closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.answered = asyncio.Event()
        self.closed: asyncio.Future[float] = self._loop.create_future()
        self.last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, _data: bytes) -> None:
        self.last_s = self._loop.time()
        self.answered.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self.answered.set()
        if not self.closed.done():
            self.closed.set_result(self._loop.time())


async def idle_closed_s(
    address: Address, watch_s: float, *, ca_file: str | None = None
) -> float | None:
    """Seconds of idleness after which the engine closed; None when it kept ``watch_s``, or when it
    cannot be reached (which others notice).
    """
    head = b"GET %b/v1/models HTTP/1.1\r\nhost: %b\r\n\r\n" % (
        address.prefix.encode(),
        address.host_header,
    )
    try:
        idle = await dial(address, _Idle, connect_timeout_s=_TIMEOUT_S, ca_file=ca_file)
    except ConnectFailed:
        return None
    assert idle.transport is not None
    try:
        idle.transport.write(head)
        async with asyncio.timeout(_TIMEOUT_S):
            await idle.answered.wait()
        async with asyncio.timeout(watch_s):
            closed_s = await asyncio.shield(idle.closed)
        return closed_s - idle.last_s if idle.last_s else None
    except TimeoutError:
        return None
    finally:
        idle.transport.abort()
