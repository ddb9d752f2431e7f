"""Connections are kept, used last in first out, and never beyond their time or their trust."""

import asyncio

import pytest

from gateway.wire.dial import ConnectFailed, parse_endpoint
from gateway.wire.pool import Pool
from tests.support.engine import serving
from tests.support.until import until

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright"


class Told:
    def __init__(self):
        self.body = b""
        self.cut = None
        self.over = asyncio.Event()

    def on_head(self, status, headers):
        pass

    def on_body(self, data):
        self.body += data

    def on_end(self):
        self.over.set()

    def on_cut(self, failure):
        self.cut = failure
        self.over.set()


class Engine:
    """``replies`` are used up one a request, over all connections; then each answer is right."""

    def __init__(self):
        self.replies = []
        self.requests = []
        self.connections = 0
        self.closed = 0

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                reply = self.replies.pop(0) if self.replies else GOOD
                writer.write(reply)
                if b"connection: close" in reply:
                    return
        finally:
            self.closed += 1


@pytest.fixture
async def engine():
    made = Engine()
    async with serving(made.serve) as address:
        made.address = address
        yield made


@pytest.fixture
async def pool(engine):
    made = Pool(engine.address)
    yield made
    made.close()
    await asyncio.sleep(0)


async def begin(pool, body=b""):
    upstream = pool.acquire() or await pool.connect(1)
    told = Told()
    upstream.send(pool.request_head(b"POST", b"/x", (), len(body)), body, told)
    return upstream, told


async def ask(pool):
    upstream, told = await begin(pool)
    await asyncio.wait_for(told.over.wait(), 3)
    pool.give_back(upstream)
    return told


async def test_last_one_given_back_is_the_first_one_used(engine, pool):
    first, second = await pool.connect(1), await pool.connect(1)
    pool.give_back(first)
    pool.give_back(second)

    assert pool.idle == 2
    assert pool.acquire() is second
    assert pool.acquire() is first
    assert pool.acquire() is None
    first.abort()
    second.abort()


async def test_connection_in_use_is_not_lent_twice(engine, pool):
    one, told_one = await begin(pool)
    other, told_other = await begin(pool)
    await asyncio.gather(told_one.over.wait(), told_other.over.wait())

    assert one is not other
    assert (told_one.body, told_other.body) == (b"right", b"right")
    pool.give_back(one)
    pool.give_back(other)


async def test_idle_one_that_the_engine_closed_is_not_used(engine, pool):
    await ask(pool)
    engine.replies = [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]
    await ask(pool)

    assert pool.idle == 0
    assert (await ask(pool)).body == b"right"
    assert engine.connections == 2


async def test_idle_ones_are_closed_at_their_time_without_a_request(engine):
    pool = Pool(engine.address, idle_s=0.05)
    await ask(pool)
    await until(lambda: engine.closed == 1)

    assert pool.idle == 0
    pool.close()


async def test_closed_pool_closes_idle_ones_now_and_used_ones_when_given_back(engine):
    pool = Pool(engine.address)
    upstream = await pool.connect(1)
    await ask(pool)
    pool.close()
    await until(lambda: engine.closed == 1)
    assert engine.connections == 2
    pool.give_back(upstream)
    await until(lambda: engine.closed == 2)


async def test_abort_closes_the_engines_side_at_once_and_tells_nobody(engine, pool):
    engine.replies = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nright\r\n"]
    upstream, told = await begin(pool)
    await until(lambda: told.body)
    upstream.abort()
    await until(lambda: engine.closed == 1)

    assert not told.over.is_set()
    pool.give_back(upstream)
    assert pool.idle == 0


async def test_aborted_while_paused_closes_too(engine, pool):
    engine.replies = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nright\r\n"]
    upstream, told = await begin(pool)
    await until(lambda: told.body)
    upstream.pause()
    upstream.abort()
    await until(lambda: engine.closed == 1)


async def test_paused_connection_reads_on_when_resumed(engine, pool):
    upstream = await pool.connect(1)
    upstream.pause()
    told = Told()
    upstream.send(pool.request_head(b"GET", b"/x", (), 0), b"", told)
    await until(lambda: engine.requests)
    await asyncio.sleep(0.02)
    assert not told.body
    upstream.resume()
    await asyncio.wait_for(told.over.wait(), 3)
    pool.give_back(upstream)

    assert told.body == b"right"


async def test_bytes_that_come_while_idle_close_the_connection(engine, pool):
    async def late(reader, writer):
        engine.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GOOD)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await reader.read()
        engine.closed += 1

    async with serving(late) as address:
        poisoned = Pool(address)
        await ask(poisoned)
        await until(lambda: engine.closed == 1)
        assert (await ask(poisoned)).body == b"right"
        poisoned.close()

    assert engine.connections == 2


async def test_a_body_of_megabytes_arrives_whole(engine, pool):
    received = 0

    async def swallow(reader, writer):
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        received = len(await reader.readexactly(8 << 20))
        writer.write(GOOD)

    async with serving(swallow) as address:
        large = Pool(address)
        upstream, told = await begin(large, b"x" * (8 << 20))
        await asyncio.wait_for(told.over.wait(), 4)
        upstream.abort()
        large.close()

    assert (received, told.body) == (8 << 20, b"right")


@pytest.mark.parametrize("split", [1, 2, 3, 7])
async def test_response_in_pieces_of_any_size_is_the_same(pool, split):
    whole = (
        b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nrig\r\n2;ext=1\r\nht\r\n0\r\ntrailer: t\r\n\r\n"
    )
    upstream = await pool.connect(1)
    told = Told()
    upstream.send(b"GET / HTTP/1.1\r\n", b"", told)  # unfinished: the engine stays silent
    for at in range(0, len(whole), split):
        upstream.data_received(whole[at : at + split])

    assert (told.body, told.over.is_set(), told.cut) == (b"right", True, None)
    assert upstream.reusable
    upstream.abort()


async def test_nobody_listening_is_a_failed_connect(engine):
    pool = Pool(parse_endpoint("http://127.0.0.1:1"))
    with pytest.raises(ConnectFailed):
        await pool.connect(1)
    pool.close()
