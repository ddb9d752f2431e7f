"""Demo engines on the test's own loop, and engines that say exactly the bytes they are told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.demo.engine import DemoEngine
from gateway.wire.dial import Address, parse_endpoint

StartEngine = Callable[..., Awaitable[DemoEngine]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    """``await start_engine(**options)`` gives a listening engine; all are stopped at the end."""
    engines: list[DemoEngine] = []

    async def start(**options: Any) -> DemoEngine:
        engine = DemoEngine(**options)
        await engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.stop()


@asynccontextmanager
async def serving(serve: Serve, **options: Any) -> AsyncIterator[Address]:
    """A server that hands every connection to ``serve`` and closes it afterwards."""
    open_ones: set[asyncio.Task[None]] = set()

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            open_ones.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(attend, "127.0.0.1", 0, **options)
    scheme = "https" if options.get("ssl") else "http"
    try:
        yield parse_endpoint(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
        for task in tuple(open_ones):
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # aborted transports close one turn later
