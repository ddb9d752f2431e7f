"""Engines that misbehave: each response ends clearly, and poisons no other."""

import asyncio

import pytest

from gateway.wire.dial import ConnectFailed, dial, parse_endpoint
from gateway.wire.fetch import FetchFailed, fetch
from gateway.wire.pool import Pool
from gateway.wire.upstream import Upstream
from tests.support.engine import serving
from tests.support.until import until

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright"


class Told:
    """A receiver that remembers."""

    def __init__(self):
        self.status = 0
        self.body = b""
        self.cut = None
        self.over = asyncio.Event()

    def on_head(self, status, headers):
        self.status = status

    def on_body(self, data):
        self.body += data

    def on_end(self):
        self.over.set()

    def on_cut(self, failure):
        self.cut = failure
        self.over.set()


class Engine:
    """Answers each request on any connection with the next of its scripts."""

    def __init__(self):
        self.scripts = []
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        self.writer = writer
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                data, close = self.scripts.pop(0)
                writer.write(data)
                await writer.drain()
                if close:
                    break
        except (asyncio.IncompleteReadError, IndexError):
            pass
        writer.close()
        await writer.wait_closed()


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


async def ask(pool):
    upstream = pool.acquire() or await pool.connect(1)
    told = Told()
    upstream.send(pool.request_head(b"GET", b"/x", (), 0), b"", told)
    await asyncio.wait_for(told.over.wait(), 3)
    if told.cut is None:
        pool.give_back(upstream)
    return told


async def test_connection_is_kept_and_used_again(engine, pool):
    engine.scripts = [(GOOD, False), (GOOD, False)]
    first, second = await ask(pool), await ask(pool)

    assert (first.body, second.body, engine.connections) == (b"right", b"right", 1)


class Takes(Told):
    """A receiver that takes a whole answer."""

    taken = None

    def take_answer(self, content_type, body):
        self.taken = (content_type, body)
        self.over.set()
        return True


VLLM = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: 9\r\ncontent-type: application/json\r\nx-request-id: a-1\r\n\r\n"
)


@pytest.mark.parametrize(
    ("head", "taken"),
    [
        (VLLM, True),
        (VLLM.replace(b"content-length: 9\r\n", b"").replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"), True),
        (VLLM.replace(b"server: uvicorn", b"connection: close"), False),
        (VLLM.replace(b"server: uvicorn", b"content-encoding: identity"), False),
        (VLLM.replace(b"server: uvicorn", b"content-length: 9"), False),
        (VLLM.replace(b"200 OK", b"201 Created"), False),
        (VLLM.replace(b"content-length: 9", b"content-length: 8"), False),
        (VLLM.replace(b"x-request-id: a-1", b"x-request-id : a-1"), False),
    ],
)  # fmt: skip
async def test_only_the_usual_whole_answer_is_taken_without_a_parser(engine, pool, head, taken):
    engine.scripts = [(head + b'{"a":"b"}', False)]
    upstream, told = await pool.connect(1), Takes()
    upstream.send(pool.request_head(b"GET", b"/x", (), 0), b"", told)
    await asyncio.wait_for(told.over.wait(), 3)

    assert told.taken == ((b"application/json", b'{"a":"b"}') if taken else None)
    upstream.abort()


async def test_interim_answers_are_skipped(engine, pool):
    engine.scripts = [(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3 + GOOD, False)]
    told = await ask(pool)

    assert (told.status, told.body) == (200, b"right")


CUTS = {
    "closes at once": b"",
    "no HTTP": b"garbage garbage garbage\r\n\r\n",
    "bad status line": b"HTTP/1.1 abc OK\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "shorter than its length": b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nright",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nright",
    "cut chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nrig",
    "chunks without an end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nright\r\n",
    "chunk size no hex": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nright\r\n0\r\n\r\n",
    "giant head": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
    "only interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 9\r\n\r\nright",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nright",
    "another version": b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nright",
    "chunked twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
    b"transfer-encoding: chunked\r\n\r\n5\r\nright\r\n0\r\n\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nright",
    "list of lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nright",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nright",
    "interim answers without end": b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" * 9000,
    "megabytes of trailers": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nright\r\n0\r\n" + b"x: yyyyyyyyyyyyyyyyyyyy\r\n" * 200_000 + b"\r\n",
    "one giant trailer": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nright\r\n0\r\nx: " + b"y" * 4_000_000 + b"\r\n\r\n",
    "giant chunk extension": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5;x=" + b"y" * 500_000 + b"\r\nright\r\n0\r\n\r\n",
    "many chunk extensions": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    + (b"1;x=" + b"y" * 1000 + b"\r\nr\r\n") * 500
    + b"0\r\n\r\n",
    "NUL in the head": b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 5\r\n\r\nright",
}


@pytest.mark.parametrize("script", CUTS.values(), ids=CUTS.keys())
async def test_broken_response_is_a_cut_and_the_next_request_gets_its_own(engine, pool, script):
    engine.scripts = [(script, True), (GOOD, False)]
    broken = await ask(pool)
    next_one = await ask(pool)

    assert broken.cut is not None
    assert next_one.body == b"right"
    assert engine.connections == 2


POISON = {
    "bytes beyond the length": GOOD + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
    "junk beyond the length": GOOD + b"junk",
    "bytes beyond the last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nright\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
}


@pytest.mark.parametrize("script", POISON.values(), ids=POISON.keys())
async def test_bytes_beyond_a_response_reach_nobody(engine, pool, script):
    engine.scripts = [(script, False), (GOOD, False)]
    first = await ask(pool)
    second = await ask(pool)

    assert b"poison" not in first.body
    assert second.body == b"right"


async def test_bytes_before_a_request_close_the_socket(engine, pool):
    async def eager(reader, writer):
        engine.connections += 1
        writer.write(GOOD)
        await reader.read()
        writer.close()

    async with serving(eager) as address:
        upstream = await dial(address, Upstream, connect_timeout_s=1)
        await until(lambda: not upstream.reusable)


async def test_bytes_sent_ahead_are_not_taken_for_the_next_answer(engine, pool):
    """They wait in the socket: the loop has had no turn to read them."""
    engine.scripts = [(GOOD, False), (GOOD, False)]
    poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"

    await ask(pool)
    engine.writer.write(poison)  # at once: the kernel has them now, and the loop does not

    assert pool.acquire() is None
    assert (await ask(pool)).body == b"right"
    assert engine.connections == 2


async def test_trailers_mean_nothing(engine, pool):
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nright\r\n0\r\n"
    engine.scripts = [(chunked + b"content-encoding: gzip\r\n\r\n", False)]

    told = await ask(pool)
    assert (told.body, told.cut) == (b"right", None)


async def test_a_long_stream_of_small_chunks_is_no_excess(engine, pool):
    chunks = b"1\r\nx\r\n" * 50_000
    engine.scripts = [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", False)
    ]

    assert (await ask(pool)).body == b"x" * 50_000


async def test_a_receivers_bug_is_told_and_ends_its_response(engine, pool, caplog):
    class Broken(Told):
        def on_body(self, data):
            raise LookupError("ours")

    engine.scripts = [(GOOD, False)]
    upstream, told = await pool.connect(1), Broken()
    upstream.send(pool.request_head(b"GET", b"/x", (), 0), b"", told)
    await asyncio.wait_for(told.over.wait(), 3)

    assert told.cut is not None
    assert "a receiver failed" in caplog.text


async def test_kept_socket_that_died_says_it_was_reused(engine, pool):
    engine.scripts = [(GOOD, False), (b"", True), (GOOD, False)]
    await ask(pool)
    died = await ask(pool)

    assert died.cut.reused
    assert died.cut.before_any_byte
    assert (await ask(pool)).body == b"right"


async def test_close_ends_a_body_without_a_length(engine, pool):
    engine.scripts = [(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nright", True)]
    told = await ask(pool)

    assert (told.body, told.cut) == (b"right", None)
    assert pool.idle == 0


async def test_idle_connection_is_not_used_beyond_its_time(engine):
    pool = Pool(engine.address, idle_s=0.05)
    engine.scripts = [(GOOD, False), (GOOD, False)]
    await ask(pool)
    await asyncio.sleep(0.12)
    assert pool.idle == 0
    await ask(pool)
    pool.close()

    assert engine.connections == 2


async def test_refused_connection_says_so():
    with pytest.raises(ConnectFailed) as failed:
        await dial(parse_endpoint("http://127.0.0.1:1"), Upstream, connect_timeout_s=1)

    assert not failed.value.timeout


async def test_fetch_gives_the_whole_answer_or_fails(engine):
    engine.scripts = [(GOOD, False), (CUTS["cut chunk"], True)]
    address = engine.address

    assert (await fetch(address, "GET", "/x")).body == b"right"
    with pytest.raises(FetchFailed):
        await fetch(address, "GET", "/x")


async def test_fetch_gives_up_in_time_and_at_its_bound(engine):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    async with serving(silent) as address:
        with pytest.raises(FetchFailed):
            await fetch(address, "GET", "/x", timeout_s=0.1)
    engine.scripts = [(GOOD, False)]
    with pytest.raises(FetchFailed):
        await fetch(engine.address, "GET", "/x", max_bytes=3)


def test_request_head_holds_only_what_engines_may_know(engine_free_pool):
    head = engine_free_pool.request_head(b"POST", b"/v1/x", [(b"x-request-id", b"r")], 7)

    assert head == (
        b"POST /prefix/v1/x HTTP/1.1\r\nhost: e:81\r\naccept-encoding: identity\r\n"
        b"authorization: Bearer secret\r\nx-request-id: r\r\ncontent-length: 7\r\n\r\n"
    )


@pytest.fixture
async def engine_free_pool():
    return Pool(parse_endpoint("http://e:81/prefix/"), credential=b"secret")


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "a:80", "http://", "http://u:p@a", "http://a?x", "http://a#x", "http:///x"],
)
def test_url_that_is_no_endpoint_is_refused(url):
    with pytest.raises(ValueError, match="endpoint url"):
        parse_endpoint(url)


def test_endpoint_address_is_read():
    address = parse_endpoint("https://[::1]/engine/")

    assert (address.host, address.port, address.tls, address.prefix, address.host_header) == (
        "::1", 443, True, "/engine", b"[::1]",
    )  # fmt: skip
