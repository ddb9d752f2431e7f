"""The front door, fed as bytes over real sockets."""

import asyncio
import contextlib
import ipaddress
import socket
import time

import pytest

from gateway.contract.errors import ContractError
from gateway.errors import answer
from gateway.settings import WireSettings
from gateway.wire import connection, lobby, proxy_header
from gateway.wire.cors import Cors
from gateway.wire.deadlines import Wheel
from gateway.wire.server import Server
from tests.support.until import until

QUICK = WireSettings(head_s=0.3, body_s=0.3, idle_s=0.3, stall_s=0.3, linger_s=0.3, tick_s=0.02)
JSON = (b"content-type", b"application/json")


def refuse(error):
    said = answer(error, "")
    return said.status, [JSON, *said.headers], said.body


class Door:
    """A server on loopback whose handler echoes; ``seen`` holds what reached it."""

    def __init__(self, settings, **options):
        self.seen = []
        self.refused = []
        self.handler = self.echo
        self.wheel = Wheel(settings.tick_s, asyncio.get_running_loop())
        self.server = Server(
            settings, self.handle, refuse, self.wheel, on_refused=self.refused.append, **options
        )

    async def handle(self, request, reply):
        await self.handler(request, reply)

    async def echo(self, request, reply):
        self.seen.append(request)
        reply.send(200, [JSON], b"%d:%b" % (len(self.seen), request.body))

    async def start(self):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.wheel.start()
        await self.server.serve(sock)
        return self

    async def say(self, data, read=True):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 3) if read else b""
        except ConnectionResetError:
            return b"reset"
        finally:
            writer.close()

    async def stop(self):
        self.server.close()
        await asyncio.sleep(0.01)
        self.wheel.stop()


@pytest.fixture
async def opened():
    """``await opened(settings, **options)`` gives a door; all are closed at the end."""
    doors = []

    async def make(settings=QUICK, **options):
        doors.append(await Door(settings, **options).start())
        return doors[-1]

    yield make
    for door in doors:
        await door.stop()


@pytest.fixture
async def door(opened):
    return await opened()


def post(body=b"", *lines, target=b"/v1/x", close=True):
    head = [b"POST " + target + b" HTTP/1.1", b"host: a", *lines]
    head += [b"content-length: %d" % len(body)] if body is not None else []
    head += [b"connection: close"] if close else []
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


async def test_request_is_answered_with_its_length(door):
    said = await door.say(post(b"hello"))

    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"\r\n\r\n1:hello")
    assert b"content-length: 7" in said
    assert (door.seen[0].path, door.seen[0].peer) == ("/v1/x", "127.0.0.1")


async def test_bytes_may_come_one_by_one(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    for byte in post(b"hi"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"1:hi")
    writer.close()


async def test_pipelined_requests_are_answered_in_order(door):
    said = await door.say(post(b"a", close=False) + post(b"b", close=False) + post(b"c"))

    assert [said.index(each) for each in (b"1:a", b"2:b", b"3:c")] == sorted(
        said.index(each) for each in (b"1:a", b"2:b", b"3:c")
    )


async def test_chunked_body_arrives_whole(door):
    said = await door.say(
        post(None, b"transfer-encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )

    assert said.endswith(b"1:abcde")


async def test_expect_continue_is_answered_before_the_body(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(b"body", b"expect: 100-continue")[:-4])
    assert (await reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    assert (await reader.read()).endswith(b"1:body")
    writer.close()


H = b"POST /v1/x HTTP/1.1\r\n"
MALFORMED = {
    "no host": H + b"\r\n",
    "two hosts": H + b"host: a\r\nhost: b\r\n\r\n",
    "empty host": H + b"host:\r\n\r\n",
    "host with a path": H + b"host: a/b\r\n\r\n",
    "host with userinfo": H + b"host: u@a\r\n\r\n",
    "host list": H + b"host: a, b\r\n\r\n",
    "length and chunked": H + b"host: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
    "chunked and length": H + b"host: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
    "two lengths": H + b"host: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "length list": H + b"host: a\r\ncontent-length: 3, 3\r\n\r\nabc",
    "length with a plus": H + b"host: a\r\ncontent-length: +3\r\n\r\nabc",
    "length in hex": H + b"host: a\r\ncontent-length: 0x3\r\n\r\nabc",
    "negative length": H + b"host: a\r\ncontent-length: -1\r\n\r\n",
    "empty length": H + b"host: a\r\ncontent-length:\r\n\r\n",
    "huge length": H + b"host: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
    "gzip coding": H + b"host: a\r\ntransfer-encoding: gzip\r\n\r\n",
    "gzip, chunked": H + b"host: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    "chunked twice": H
    + b"host: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    "chunked, chunked": H + b"host: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
    "coding with a tab": H + b"host: a\r\ntransfer-encoding: \tchunked x\r\n\r\n",
    "identity coding": H + b"host: a\r\ntransfer-encoding: identity\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    "folded header": H + b"host: a\r\nx-a: b\r\n c\r\n\r\n",
    "folded with a tab": H + b"host: a\r\nx-a: b\r\n\tc\r\n\r\n",
    "space before the colon": H + b"host: a\r\nx-a : b\r\n\r\n",
    "coding with space": H + b"host: a\r\ntransfer-encoding : chunked\r\n\r\n",
    "no colon": H + b"host: a\r\nnonsense\r\n\r\n",
    "empty name": H + b"host: a\r\n: b\r\n\r\n",
    "name with a quote": H + b'host: a\r\nx"a: b\r\n\r\n',
    "bare LF line": b"POST /v1/x HTTP/1.1\nhost: a\n\n",
    "bare LF inside": H + b"host: a\r\nx-a: b\nx-b: c\r\n\r\n",
    "bare CR inside": H + b"host: a\r\nx-a: b\rx-b: c\r\n\r\n",
    "NUL in a value": H + b"host: a\r\nx-a: b\0c\r\n\r\n",
    "NUL in the target": b"POST /v1/\0 HTTP/1.1\r\nhost: a\r\n\r\n",
    "bell in a value": H + b"host: a\r\nx-a: b\x07c\r\n\r\n",
    "lower-case method": b"post / HTTP/1.1\r\nhost: a\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n",
    "connect": b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    "absolute form": b"GET http://evil/ HTTP/1.1\r\nhost: a\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "no version": b"GET /\r\nhost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nhost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
    "tab for a space": b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n",
    "dot dot": b"GET /v1/../admin HTTP/1.1\r\nhost: a\r\n\r\n",
    "encoded dot dot": b"GET /v1/%2e%2e/admin HTTP/1.1\r\nhost: a\r\n\r\n",
    "encoded slash": b"GET /v1%2fmodels HTTP/1.1\r\nhost: a\r\n\r\n",
    "double slash": b"GET //v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    "backslash": b"GET /v1\\models HTTP/1.1\r\nhost: a\r\n\r\n",
    "fragment": b"GET /v1#x HTTP/1.1\r\nhost: a\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_head_is_refused_closed_and_never_handled(door, data):
    said = await door.say(data)

    assert said.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{' in said
    assert b"connection: close" in said
    assert door.seen == []


CHUNKS = {
    "size is no hex": b"zz\r\nabc\r\n0\r\n\r\n",
    "size with an extension": b"3;x=y\r\nabc\r\n0\r\n\r\n",
    "size with a space": b"3 \r\nabc\r\n0\r\n\r\n",
    "size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "bare LF": b"3\nabc\n0\n\n",
    "chunk longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
    "trailer": b"3\r\nabc\r\n0\r\nx: y\r\n\r\n",
    "endless size": b"0" * 40 + b"\r\n",
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS.keys())
async def test_broken_chunks_are_refused(door, body):
    said = await door.say(post(None, b"transfer-encoding: chunked") + body)

    assert said.startswith(b"HTTP/1.1 400 ")
    assert door.seen == []


async def test_second_request_hidden_in_a_refused_one_is_never_handled(door):
    smuggled = post(b"hidden")
    said = await door.say(MALFORMED["length and chunked"] + b"0\r\n\r\n" + smuggled)

    assert said.count(b"HTTP/1.1") == 1
    assert door.seen == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"414"),
        (H + b"host: a\r\n" + b"x: y\r\n" * 101 + b"\r\n", b"431"),
        (H + b"host: a\r\nx: " + b"y" * 40_000, b"431"),
        (H + b"host: a\r\ncontent-length: 9000000\r\n\r\n", b"413"),
        (H + b"host: a\r\ntransfer-encoding: chunked\r\n\r\n900000\r\n", b"413"),
        (H + b"host: a\r\nexpect: magic\r\n\r\n", b"417"),
    ],
    ids=["target", "headers", "head", "body", "chunked body", "expectation"],
)
async def test_what_is_too_large_or_too_much_to_ask_says_so(door, data, status):
    said = await door.say(data)

    assert said.startswith(b"HTTP/1.1 " + status)
    assert door.seen == []


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HT", H + b"host: a\r\ncontent-length: 9\r\n\r\nabc"],
    ids=["silence", "half a head", "half a body"],
)
async def test_slow_client_is_closed_in_time(door, data):
    began = time.monotonic()
    await door.say(data)

    assert time.monotonic() - began < 1
    assert door.seen == []


async def test_leaving_is_told_at_once_while_the_handler_streams(door):
    gone = asyncio.Event()

    async def stream(_request, reply):
        reply.on_gone = gone.set
        reply.start(200, b"")
        reply.write(b"x")
        await gone.wait()

    door.handler = stream
    for half in (False, True):
        gone.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(post(b""))
        await reader.readuntil(b"x")
        began = time.monotonic()
        if half:
            writer.write_eof()
        else:
            writer.close()
        await asyncio.wait_for(gone.wait(), 1)
        assert time.monotonic() - began < 0.1
        writer.close()


async def test_reader_that_does_not_read_pauses_the_source_and_is_cut(door):
    told = []
    gone = asyncio.Event()

    async def flood(_request, reply):
        reply.on_pause = lambda: told.append("pause")
        reply.on_gone = gone.set
        reply.start(200, b"")
        while "pause" not in told:
            reply.write(b"x" * 65_536)
            await asyncio.sleep(0)
        await gone.wait()

    door.handler = flood
    _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
    writer.write(post(b""))
    await asyncio.wait_for(gone.wait(), 3)
    writer.close()

    assert told == ["pause"]


async def test_handler_that_fails_answers_500_and_hangs_nobody(door):
    async def fail(_request, _reply):
        raise RuntimeError("a bug")

    door.handler = fail
    said = await door.say(post(b"", close=False))

    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"a bug" not in said


async def test_contract_error_out_of_a_handler_keeps_its_status(door):
    class Teapot(ContractError):
        status = 418

    async def fail(_request, _reply):
        raise Teapot("short and stout")

    door.handler = fail

    assert (await door.say(post(b""))).startswith(b"HTTP/1.1 418 ")


async def test_drain_closes_idle_connections_and_waits_for_running_ones(door):
    go = asyncio.Event()

    async def slow(_request, reply):
        await go.wait()
        reply.send(200, [], b"done")

    door.handler = slow
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", door.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(b"", close=False))
    await asyncio.sleep(0.05)
    draining = asyncio.ensure_future(door.server.drain(2))
    assert await asyncio.wait_for(idle_reader.read(), 1) == b""
    assert not draining.done()
    go.set()
    assert (await reader.read()).endswith(b"done")
    await asyncio.wait_for(draining, 1)
    idle.close()
    writer.close()


async def test_connections_from_one_address_are_capped(opened):
    door = await opened(WireSettings(connections_per_address_max=2, tick_s=0.02))
    kept = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
    await asyncio.sleep(0.02)

    assert (await door.say(b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in kept:
        writer.close()
    await asyncio.sleep(0.02)

    assert (await door.say(post(b"hi"))).endswith(b"1:hi")
    assert door.refused == ["NoCapacity"]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_offer_to_upgrade_is_ignored(door, protocol):
    said = await door.say(post(b"hi", b"upgrade: " + protocol, b"connection: upgrade"))

    assert said.endswith(b"1:hi")


@pytest.mark.parametrize("close", [True, False])
async def test_reader_of_a_whole_answer_that_does_not_read_is_let_go(door, close):
    async def large(_request, reply):
        reply.send(200, [], b"x" * (64 << 20))

    door.handler = large
    _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
    writer.write(post(b"", close=close))
    await asyncio.sleep(0.05)
    until = time.monotonic() + 3
    while door.server.connections and time.monotonic() < until:
        await asyncio.sleep(0.02)
    writer.close()

    assert door.server.connections == 0


async def test_pipelined_requests_wait_for_their_reader(door):
    async def large(request, reply):
        door.seen.append(request)
        reply.send(200, [], b"x" * (8 << 20))

    door.handler = large
    _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
    writer.write(post(b"", close=False) * 20)
    await asyncio.sleep(0.15)
    writer.close()

    assert len(door.seen) < 5


async def test_slash_of_a_model_name_may_be_encoded(door):
    said = await door.say(
        b"GET /v1/models/meta%2Fllama HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    )

    assert said.startswith(b"HTTP/1.1 200 ")


# -- too much, too slow, too many ------------------------------------------------------------------


async def test_client_that_sends_a_large_body_regardless_reads_why_it_was_refused(door):
    """Closing with bytes unread resets the connection, and the answer is lost."""
    for head in (b"content-length: 9000000", b"transfer-encoding: chunked"):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(H + b"host: a\r\n" + head + b"\r\n\r\n")
        body = b"ffffff\r\n" + b"x" * 0xFFFFFF + b"\r\n0\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            for at in range(0, 9_000_000, 65_536):
                writer.write(body[at : at + 65_536])
                await writer.drain()
        said = await asyncio.wait_for(reader.read(), 3)
        writer.close()

        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"request_body_too_large" in said


async def test_refused_client_that_never_stops_sending_is_cut(door):
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(MALFORMED["two hosts"])
    with contextlib.suppress(ConnectionError):
        for _ in range(300):
            writer.write(b"x" * 1000)
            await writer.drain()
            await asyncio.sleep(0.01)
            if not door.server.connections:
                break
    writer.close()

    assert door.server.connections == 0


async def test_body_too_large_is_refused_instead_of_asked_for(door):
    said = await door.say(H + b"host: a\r\nexpect: 100-continue\r\ncontent-length: 9000000\r\n\r\n")

    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in said


async def test_body_that_is_there_already_is_not_asked_for(door):
    assert (await door.say(post(b"body", b"expect: 100-continue"))).startswith(b"HTTP/1.1 200 ")


async def test_chunks_may_be_asked_for(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(None, b"transfer-encoding: chunked", b"expect: 100-continue"))
    assert (await reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"2\r\nhi\r\n0\r\n\r\n")
    assert (await reader.read()).endswith(b"1:hi")
    writer.close()


async def test_body_that_drips_is_refused_before_its_time_is_up(opened, monkeypatch):
    monkeypatch.setattr(connection, "RATE_CHECK_S", 0.1)
    door = await opened(WireSettings(body_s=30, body_bytes_per_s_min=1000, tick_s=0.02))
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(b"x" * 5000)[:-5000])
    began = time.monotonic()
    reading = asyncio.ensure_future(reader.read())
    with contextlib.suppress(ConnectionError):
        while not reading.done() and time.monotonic() - began < 5:
            writer.write(b"x")
            await asyncio.sleep(0.02)
    writer.close()

    assert (await reading).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 2


async def test_slow_body_that_keeps_its_rate_is_taken(opened, monkeypatch):
    monkeypatch.setattr(connection, "RATE_CHECK_S", 0.1)
    door = await opened(WireSettings(body_s=30, body_bytes_per_s_min=100, tick_s=0.02))
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(b"x" * 5000)[:-5000])
    for _ in range(50):
        writer.write(b"x" * 100)
        await asyncio.sleep(0.01)
    until = time.monotonic() + 3
    while not door.seen and time.monotonic() < until:
        await asyncio.sleep(0.01)
    writer.close()

    assert [len(request.body) for request in door.seen] == [5000]


async def test_bytes_of_a_slow_head_do_not_move_its_deadline(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    began = time.monotonic()
    reading = asyncio.ensure_future(reader.read())
    with contextlib.suppress(ConnectionError):
        for byte in b"\r\n" * 20 + post(b"hi") * 9:
            if reading.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
    writer.close()

    assert (await reading).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 1


async def test_slow_reader_that_goes_on_reading_gets_its_whole_answer(opened):
    door = await opened(WireSettings(stall_s=0.5, body_bytes_per_s_min=1000, tick_s=0.02))
    answer_size = 24 << 20

    async def large(_request, reply):
        reply.send(200, [], b"x" * answer_size)

    door.handler = large
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 16)
    writer.write(post(b""))
    await reader.readuntil(b"\r\n\r\n")
    size = 0
    while data := await reader.read(1 << 20):
        size += len(data)
        await asyncio.sleep(0.005)
    writer.close()

    assert size == answer_size


async def test_pipeline_ahead_of_a_running_request_is_kept_within_its_bound(door):
    go = asyncio.Event()

    async def wait(request, reply):
        door.seen.append(request)
        await go.wait()
        reply.send(200, [JSON], request.body)

    door.handler = wait
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    one = post(b"x" * 500, close=False)
    count = (32 << 20) // len(one)
    writing = asyncio.ensure_future(_write(writer, one * count))
    await until(lambda: door.seen, 30)
    await asyncio.sleep(0.2)
    [held] = door.server._connections()
    kept = len(held._buffer)
    assert len(door.seen) == 1
    go.set()
    for _ in range(2000):
        await reader.readuntil(b"\r\n\r\n" + b"x" * 500)
    writing.cancel()
    writer.transport.abort()

    assert kept <= QUICK.pipelined_bytes_max + (256 << 10)  # the bound, and one read of the socket
    assert not writing.done() or writing.cancelled() or len(door.seen) > 2000


async def _write(writer, data):
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


async def test_connections_are_capped_in_total_and_by_the_files_a_process_may_open(
    monkeypatch, opened
):
    monkeypatch.setattr(lobby, "descriptors", lambda: 300)
    door = await opened(WireSettings(tick_s=0.02))
    kept = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(22)]
    await asyncio.sleep(0.02)

    assert door.server.connections == 22
    assert (await door.say(b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in kept:
        writer.close()


async def test_crowd_at_a_full_door_is_cut_without_words(monkeypatch, opened):
    monkeypatch.setattr(connection, "TURNED_AWAY_MAX", 2)
    door = await opened(WireSettings(connections_max=1, tick_s=0.02))
    kept = [await asyncio.open_connection("127.0.0.1", door.port)]
    await asyncio.sleep(0.02)
    kept += [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
    await asyncio.sleep(0.02)

    assert await door.say(b"") in (b"", b"reset")
    assert [(await kept[at][0].read())[:12] for at in (1, 2)] == [b"HTTP/1.1 503"] * 2
    for _, writer in kept:
        writer.close()


async def test_three_hundred_slow_clients_are_all_closed_on_time_and_hold_up_nobody(opened):
    """Half heads that drip, half bodies that drip, and silence; a healthy client asks meanwhile."""
    door = await opened(QUICK)
    starts = (b"GET / HTTP/1.1\r\nhost: ", H + b"host: a\r\ncontent-length: 900\r\n\r\nx", b"")
    began = time.monotonic()
    lives = []

    async def slow(start):
        opened_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(start)
        reading = asyncio.ensure_future(reader.read())
        with contextlib.suppress(ConnectionError):
            while not (await asyncio.wait({reading}, timeout=0.1))[0]:
                if start:
                    writer.write(b"x")
        with contextlib.suppress(ConnectionError):
            lives.append((time.monotonic() - opened_s, (await reading)[9:12]))
        writer.close()

    crowd = [asyncio.ensure_future(slow(starts[at % 3])) for at in range(300)]
    healthy = 0
    while time.monotonic() - began < 0.6 or (healthy <= 3 and door.server.connections > 150):
        assert (await door.say(post(b"hi"))).startswith(b"HTTP/1.1 200 ")
        healthy += 1
    await asyncio.wait_for(asyncio.gather(*crowd), 20)

    assert healthy > 3
    assert len(lives) == 300
    assert {said for _, said in lives} <= {b"408", b""}
    assert sorted(lives)[150][0] < 5  # on a busy machine; the deadline is 0.3
    until = time.monotonic() + 5
    while door.server.connections and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert door.server.connections == 0


# -- who it is -------------------------------------------------------------------------------------

LOOPBACK = (ipaddress.ip_network("127.0.0.1"),)
V2 = proxy_header.SIGNATURE
V2_TCP4 = V2 + b"\x21\x11" + (15).to_bytes(2, "big") + b"\x01\x02\x03\x04" + b"\0" * 11


@pytest.mark.parametrize(
    ("forwarded", "peer"),
    [
        (b"9.9.9.9", "9.9.9.9"),
        (b"6.6.6.6, 9.9.9.9, 127.0.0.1", "9.9.9.9"),
        (b"9.9.9.9, nonsense", "127.0.0.1"),
        (b"2001:db8::1", "2001:db8::1"),
        (None, "127.0.0.1"),
    ],
)
async def test_trusted_proxy_names_the_client(opened, forwarded, peer):
    door = await opened(trusted=LOOPBACK)
    await door.say(post(b"", *([b"x-forwarded-for: " + forwarded] if forwarded else [])))

    assert door.seen[0].peer == peer


async def test_stranger_names_nobody(opened):
    door = await opened(trusted=(ipaddress.ip_network("10.0.0.0/8"),), proxy_protocol=True)
    await door.say(post(b"", b"x-forwarded-for: 9.9.9.9"))
    said = await door.say(b"PROXY TCP4 9.9.9.9 1.1.1.1 1 2\r\n" + post(b""))

    assert [request.peer for request in door.seen] == ["127.0.0.1"]
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 9.9.9.9 1.1.1.1 1 2\r\n", "9.9.9.9"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (V2_TCP4, "1.2.3.4"),
        (V2 + b"\x20\x00\x00\x00", "127.0.0.1"),
    ],
    ids=["v1", "v1 unknown", "v2", "v2 local"],
)
async def test_proxy_header_of_a_trusted_proxy_names_the_client(opened, header, peer):
    door = await opened(trusted=LOOPBACK, proxy_protocol=True)
    await door.say(header + post(b"", close=False) + post(b"", b"x-forwarded-for: 6.6.6.6"))

    assert door.seen[0].peer == peer
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    for byte in header + post(b"late"):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"3:late")
    writer.close()


@pytest.mark.parametrize("data", [post(b"hi"), b"PROXY \r\n" + post(b"hi"), b"\0", V2[:4] + b"x"])
async def test_trusted_proxy_without_its_header_is_refused(opened, data):
    door = await opened(trusted=LOOPBACK, proxy_protocol=True)

    assert (await door.say(data)).startswith(b"HTTP/1.1 400 ")
    assert door.seen == []


async def test_clients_behind_a_proxy_are_capped_each_by_its_own_address(opened):
    limits = WireSettings(connections_per_address_max=1, tick_s=0.02)
    door = await opened(limits, trusted=LOOPBACK, proxy_protocol=True)
    kept = []
    for address in (b"9.9.9.1", b"9.9.9.2", b"9.9.9.1"):
        kept.append(await asyncio.open_connection("127.0.0.1", door.port))
        kept[-1][1].write(b"PROXY TCP4 " + address + b" 1.1.1.1 1 2\r\n" + post(b"", close=False))
    answers = [(await each.readuntil(b"\r\n"))[9:12] for each, _ in kept]
    for _, writer in kept:
        writer.close()

    assert answers == [b"200", b"200", b"503"]


# -- pages of other origins ------------------------------------------------------------------------

ORIGIN = b"https://app.example.com"
ASK = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
ASKED = b"access-control-request-method: POST\r\naccess-control-request-headers: authorization, x-stainless-os\r\n"  # fmt: skip


async def test_listed_origin_is_answered_before_any_handler(opened):
    door = await opened(cors=Cors(frozenset({ORIGIN})))
    said = await door.say(ASK + b"origin: " + ORIGIN + b"\r\n" + ASKED + b"\r\n")

    assert said.startswith(b"HTTP/1.1 204 ")
    assert b"access-control-allow-origin: " + ORIGIN + b"\r\n" in said
    assert b"access-control-allow-headers: authorization, x-stainless-os\r\n" in said
    assert b"content-length" not in said
    assert door.seen == []


async def test_listed_origin_may_read_answers_streams_and_refusals(opened):
    door = await opened(cors=Cors(frozenset({ORIGIN})))
    grant = b"access-control-allow-origin: " + ORIGIN + b"\r\n"
    line = b"origin: " + ORIGIN

    async def stream(_request, reply):
        reply.start(200, b"")
        reply.finish()

    assert grant in await door.say(post(b"hi", line))
    door.handler = stream
    assert grant in await door.say(post(b"hi", line))
    refused = await door.say(H + b"host: a\r\n" + line + b"\r\ncontent-length: 9000000\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert grant in refused


async def test_other_origins_get_what_they_would_get_without(opened):
    for options in ({}, {"cors": Cors(frozenset({ORIGIN}))}):
        door = await opened(**options)
        said = await door.say(ASK + b"origin: https://evil.example\r\n" + ASKED + b"\r\n")

        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"access-control" not in said
        assert len(door.seen) == 1
