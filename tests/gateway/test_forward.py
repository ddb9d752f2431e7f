"""One forward to one endpoint: what the engine sees, what the slot says first, how it may fail."""

import asyncio
import gc
import json

import pytest

from gateway.call import Call
from gateway.contract.envelope import parse
from gateway.engines import Engines
from gateway.exchange import State
from gateway.forward import Forwarder
from gateway.metering.board import Board, read_board
from gateway.metering.slots import ids_of
from gateway.snapshot import ModelDoc, Snapshot, Timeouts
from gateway.telemetry.counters import Counters
from gateway.telemetry.tracing import context_from
from gateway.wire.deadlines import Wheel
from gateway.wire.relay import Ended, Failed, Relay
from gateway.wire.reply import Reply
from gateway.wire.watch import Watch
from quotas.estimate import Plan
from routing.topology import Pool
from tests.support.calls import REQUEST_ID, exchange, request
from tests.support.engine import serving, start_engine
from tests.support.topology import endpoint
from tests.support.until import until

__all__ = ["start_engine"]

BODY = b'{"model":"llama", "messages":[{"role":"user","content":"\\u0068i"}] ,"max_tokens":3,"x":[1.0]}'
SALT = b'"cache_salt":"salt-of-1",'
STREAMED = BODY[:-1] + b',"stream":true}'


class Client(asyncio.Transport):
    """The client's side of the reply, which only remembers."""

    def __init__(self):
        super().__init__()
        self.data = b""

    def write(self, data):
        self.data += data

    def abort(self):
        pass


class Bench:
    """Everything an attempt needs, around one endpoint."""

    def __init__(self, folder, url, *, upstream="demo-model", timeouts=None, **fields):
        self.board_path = folder / "board"
        self.board = Board(self.board_path, 4)
        self.slot = self.board.claim()
        self.wheel = Wheel(0.01, asyncio.get_running_loop())
        self.counters = Counters()
        self.engines = Engines({"ENGINE_KEY": "own-key"}, idle_s=4.0)
        self.endpoint = endpoint(7, url=url, **fields)
        snapshot = Snapshot()
        snapshot.pools[1] = Pool(id=1, name="p", endpoints=(self.endpoint,))
        self.engines.sync(snapshot)
        self.model = ModelDoc(
            id=4, name="llama", upstream=upstream, pool_id=1, timeouts=timeouts or Timeouts()
        )
        self.forwarder = Forwarder(
            engines=self.engines,
            counters=self.counters,
            wheel=self.wheel,
            silence_s=20.0,
            salt=lambda tenant: f"salt-of-{tenant}",
            monotonic=asyncio.get_running_loop().time,
            unix_ms=lambda: 1_000,
        )

    def call(self, body=BODY, operation="chat"):
        reply = Reply(
            Client(), is_head=False, chunked=True, close=False, on_done=lambda close: None
        )
        trace = context_from(None, "ab" * 16, "cd" * 8, sample=False)
        call = Call(request(body), reply, REQUEST_ID, trace)
        call.envelope = parse(body, operation)
        call.exchange = exchange(self.model, operation=operation)
        return call

    async def attempt(self, call, *, plan=None, **options):
        return await self.forwarder.attempt(
            call,
            self.slot,
            self.endpoint,
            plan or Plan(9, 3, 12, None),
            b"x-y: z\r\n",
            **options,
        )

    def reserving(self):
        self.slot.reserving(bytes(16), ids_of(1, 2, 3, 4, 0), 0, 1, 1, 9, 3, 1_000)
        self.slot.reserved("e")

    def close(self):
        self.engines.close()
        self.board.close()


@pytest.fixture
async def bench(tmp_path):
    made = []

    def build(url, **options):
        made.append(Bench(tmp_path, url, **options))
        made[-1].reserving()
        return made[-1]

    yield build
    for each in made:
        each.close()
    await asyncio.sleep(0)


async def test_the_engine_gets_the_declared_headers_and_no_other(start_engine, bench):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url, api_key_env="ENGINE_KEY")
    call = made.call(STREAMED)
    assert await made.attempt(call) == Ended("finished")
    [entry] = engine.log

    assert dict(entry.headers) == {
        b"host": b"127.0.0.1:%d" % engine.port,
        b"accept-encoding": b"identity",
        b"authorization": b"Bearer own-key",
        b"content-type": b"application/json",
        b"accept": b"text/event-stream",
        b"x-request-id": call.request_id.encode(),
        b"traceparent": call.trace.header,
        b"content-length": b"%d" % len(entry.body),
    }
    assert len(entry.headers) == 8


@pytest.mark.parametrize(
    ("dialect", "usage", "added"),
    [
        (
            "vllm",
            "continuous",
            b'"stream_options":{"include_usage":true,"continuous_usage_stats":true},' + SALT,
        ),
        ("vllm", "final", b'"stream_options":{"include_usage":true},' + SALT),
        ("openai", "final", b'"stream_options":{"include_usage":true},'),
        ("openai", "none", b""),
    ],
)
async def test_the_engine_gets_the_callers_bytes_and_the_declared_edits(
    start_engine, bench, dialect, usage, added
):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url, dialect=dialect, usage=usage)
    await made.attempt(made.call(STREAMED))
    [entry] = engine.log

    assert entry.body == b"{" + added + STREAMED[1:].replace(b'"llama"', b'"demo-model"')


async def test_a_cap_of_ours_is_written_where_the_caller_gave_none(start_engine, bench):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url, dialect="openai")
    body = b'{"model":"llama","messages":[{"role":"user","content":"hi"}]}'
    await made.attempt(made.call(body), plan=Plan(9, 5, 14, 5))
    [entry] = engine.log

    assert json.loads(entry.body)["max_tokens"] == 5


async def test_the_answer_has_our_headers_and_the_public_name(start_engine, bench):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url)
    call = made.call()
    assert await made.attempt(call) == Ended("finished")
    head, _, body = call.reply.transport.data.partition(b"\r\n\r\n")

    assert json.loads(body)["model"] == "llama"
    assert b"\r\nx-y: z" in head
    assert b"server" not in head
    assert call.exchange.state is State.COMMITTED
    assert call.exchange.fold.completion == 3


@pytest.mark.parametrize("body", [BODY, STREAMED])
async def test_what_an_attempt_was_made_of_is_freed_as_it_ends(start_engine, bench, body):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url)
    call = made.call(body)
    gc.collect()
    gc.disable()
    try:
        assert await made.attempt(call) == Ended("finished")
        call.reply.forget()
        await until(lambda: made.engines.get(made.endpoint).pool.idle)
        left = [each for each in gc.get_objects() if isinstance(each, (Relay, Watch))]
    finally:
        gc.enable()

    assert left == []


async def test_the_slot_says_where_it_goes_before_the_first_byte_goes_there(bench):
    seen = []
    made = None

    async def look(reader, writer):
        await reader.readexactly(1)
        [image] = read_board(made.board_path)
        seen.append((image.state.name, [each.endpoint_id for each in image.attempts]))

    async with serving(look) as address:
        made = bench(f"http://127.0.0.1:{address.port}")
        outcome = await made.attempt(made.call())

    assert seen == [("DISPATCHED", [7])]
    assert outcome == Failed("cut_before_head")


async def test_counts_are_in_the_slot_when_the_client_has_the_bytes(start_engine, bench):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url)
    call = made.call(STREAMED)
    write = call.reply.transport.write

    def checked(data):
        frames = data.count(b'"content":"') - data.count(b'"role"')
        if frames and not checked.told:
            [image] = read_board(made.board_path)
            checked.told.append((image.progress.completion, frames))
        write(data)

    checked.told = []
    call.reply.transport.write = checked
    await made.attempt(call)

    [(counted, delivered)] = checked.told
    assert counted >= delivered > 0


async def test_nobody_listening_is_a_failed_connect_and_nothing_was_dispatched(bench):
    made = bench("http://127.0.0.1:1")
    call = made.call()

    assert await made.attempt(call) == Failed("connect")
    assert call.exchange.state is State.ADMITTED
    assert not call.exchange.reached_engine
    assert made.engines.loads[7].in_flight == 0


async def test_a_handshake_that_hangs_is_a_connect_timeout(bench):
    async def silent(reader, writer):
        await reader.read()

    async with serving(silent) as address:
        made = bench(f"https://127.0.0.1:{address.port}", timeouts=Timeouts(connect_s=0.1))
        assert await made.attempt(made.call()) == Failed("connect_timeout")


async def test_an_endpoint_that_left_its_pool_is_not_connected_to(start_engine, bench):
    engine = await start_engine()
    made = bench(engine.url)
    made.engines.sync(Snapshot())

    assert await made.attempt(made.call()) == Failed("connect")
    assert not engine.log


async def test_a_failed_attempt_is_in_the_slot_and_another_may_follow(start_engine, bench):
    engine = await start_engine(token_ms=0)
    made = bench(engine.url)
    call = made.call()
    engine.faults.status = 500
    assert (await made.attempt(call)).kind == "engine_5xx"
    assert call.exchange.state is State.ADMITTED
    engine.faults.status = 0
    assert await made.attempt(call) == Ended("finished")
    [image] = read_board(made.board_path)

    assert [(each.endpoint_id, each.status) for each in image.attempts] == [(7, 500), (7, 0)]
    assert [each.status for each in call.exchange.attempts] == [500]
    assert made.engines.get(made.endpoint).pool.idle == 1  # the same connection served both


async def test_a_kept_connection_that_died_is_told_and_a_fresh_one_is_made_when_asked(bench):
    answers = 0

    async def once(reader, writer):
        nonlocal answers
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            answers += 1
            if answers == 2:
                return
            body = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )

    async with serving(once) as address:
        made = bench(f"http://127.0.0.1:{address.port}")
        assert await made.attempt(made.call()) == Ended("finished")
        call = made.call()
        assert await made.attempt(call) == Failed("cut_before_head", reused=True)
        pool = made.engines.get(made.endpoint).pool
        idle = await pool.connect(1)
        pool.give_back(idle)
        assert await made.attempt(call, fresh=True) == Ended("finished")

    assert answers == 3
    assert pool.idle == 2


async def test_a_client_that_left_while_connecting_sends_nothing(start_engine, bench):
    engine = await start_engine()
    made = bench(engine.url)
    call = made.call()
    call.stop("client_abort")

    assert await made.attempt(call) == Failed("connect")
    assert not engine.log
    assert made.engines.get(made.endpoint).pool.idle == 1
    assert made.engines.loads[7].in_flight == 0


async def turned(made, attempt, ticks):
    """The attempt's outcome, with the wheel turned by hand once it waits."""
    task = asyncio.ensure_future(attempt)
    await until(lambda: made.engines.loads[7].in_flight)
    await asyncio.sleep(0.05)
    for _ in range(ticks):
        made.wheel.advance()
    return await asyncio.wait_for(task, 3)


async def test_a_stream_that_does_not_begin_may_begin_elsewhere(start_engine, bench):
    engine = await start_engine()
    engine.faults.delay_s = 30
    made = bench(engine.url, timeouts=Timeouts(first_event_s=0.5))
    call = made.call(STREAMED)

    assert await turned(made, made.attempt(call), 60) == Failed("first_event_timeout")
    assert call.exchange.state is State.ADMITTED


async def test_a_whole_answer_that_does_not_come_is_over_time(start_engine, bench):
    engine = await start_engine()
    engine.faults.delay_s = 30
    made = bench(engine.url, timeouts=Timeouts(unary_s=0.5))
    call = made.call()

    assert await turned(made, made.attempt(call), 60) == Ended("timeout")
    assert call.stopped[1].status == 504


async def test_comments_alone_do_not_keep_a_stream_alive(bench):
    async def comment(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for data in (event, *[b": keep-alive\n\n"] * 1000):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await asyncio.sleep(0.005)

    async with serving(comment) as address:
        made = bench(f"http://127.0.0.1:{address.port}", timeouts=Timeouts(gap_s=0.2))
        made.wheel.start()
        call = made.call(STREAMED)
        assert await asyncio.wait_for(made.attempt(call), 3) == Ended("timeout")
        made.wheel.stop()

    assert b'"code":"upstream_timeout"' in call.reply.transport.data
    assert call.exchange.frames == 1
