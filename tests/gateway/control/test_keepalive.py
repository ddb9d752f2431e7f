"""How long an engine keeps an idle connection is measured on a real one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.control.keepalive import idle_closed_s
from gateway.wire.dial import Address, parse_endpoint


@asynccontextmanager
async def engine(keeps_s: float) -> AsyncIterator[Address]:
    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            async with asyncio.timeout(keeps_s):
                await reader.read()
        except TimeoutError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(attend, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield parse_endpoint(f"http://127.0.0.1:{port}")
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


async def test_an_engine_that_closes_early_is_timed() -> None:
    async with engine(0.1) as address:
        closed_s = await idle_closed_s(address, 2.0)
    assert closed_s is not None
    assert 0.09 < closed_s < 1.0


async def test_one_that_keeps_its_connections_is_not() -> None:
    async with engine(5.0) as address:
        assert await idle_closed_s(address, 0.1) is None


async def test_one_that_is_away_is_not_either() -> None:
    async with engine(5.0) as address:
        pass
    assert await idle_closed_s(address, 0.1) is None
