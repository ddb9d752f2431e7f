"""The front door, fed as bytes over real sockets."""

import asyncio
import socket
import time

import pytest

from gateway.contract.errors import ContractError
from gateway.errors import answer
from gateway.settings import WireSettings
from gateway.wire.deadlines import Wheel
from gateway.wire.server import Server

QUICK = WireSettings(head_s=0.3, body_s=0.3, idle_s=0.3, stall_s=0.3, tick_s=0.02)
JSON = (b"content-type", b"application/json")


def refuse(error):
    said = answer(error, "")
    return said.status, [JSON, *said.headers], said.body


class Door:
    """A server on loopback whose handler echoes; ``seen`` holds what reached it."""

    def __init__(self, settings):
        self.seen = []
        self.handler = self.echo
        self.wheel = Wheel(settings.tick_s, asyncio.get_running_loop())
        self.server = Server(settings, self.handle, refuse, self.wheel)

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


@pytest.fixture
async def door():
    made = await Door(QUICK).start()
    yield made
    made.server.close()
    await asyncio.sleep(0.01)
    made.wheel.stop()


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
        reply.start(200, [])
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
        reply.start(200, [])
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


async def test_connections_from_one_address_are_capped():
    door = await Door(WireSettings(connections_per_address_max=2, tick_s=0.02)).start()
    kept = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
    await asyncio.sleep(0.02)

    assert (await door.say(b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in kept:
        writer.close()
    door.server.close()
    await asyncio.sleep(0.01)
    door.wheel.stop()


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
