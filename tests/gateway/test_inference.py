"""What a failure means to the caller, to the endpoint and to the operator; and what a request needs."""

import asyncio
import inspect

import pytest

from gateway.call import Call
from gateway.contract.errors import Overdue
from gateway.engines import Engines
from gateway.errors import answer
from gateway.inference import Inference, _longest
from gateway.snapshot import ModelDoc, Snapshot
from gateway.telemetry.counters import Counters
from gateway.telemetry.tracing import context_from
from gateway.wire.relay import Ended, Failed
from gateway.wire.reply import Reply
from quotas.estimate import Plan
from routing.topology import Pool
from tests.support.calls import REQUEST_ID, exchange, request
from tests.support.topology import endpoint

MODEL = ModelDoc(id=4, name="llama", upstream="up/llama", pool_id=1)


class Bench:
    """An inference without a store: what decides before and after an attempt."""

    def __init__(self):
        self.now_s = 100.0
        self.endpoint = endpoint(7)
        snapshot = Snapshot()
        snapshot.pools[1] = Pool(id=1, name="p", endpoints=(self.endpoint,))
        self.engines = Engines({}, idle_s=4.0)
        self.engines.sync(snapshot)
        self.counters = Counters()
        unused = dict.fromkeys(inspect.signature(Inference).parameters)
        self.inference = Inference(
            **unused
            | {
                "snapshot": snapshot,
                "engines": self.engines,
                "counters": self.counters,
                "monotonic": lambda: self.now_s,
                "unix_ms": lambda: 1_000,
            }
        )
        reply = Reply(None, is_head=False, chunked=True, close=False, on_done=lambda close: None)
        trace = context_from(None, "ab" * 16, "cd" * 8, sample=False)
        self.call = Call(request(), reply, REQUEST_ID, trace)
        self.exchange = exchange(MODEL)

    def give_up(self, failed):
        return answer(self.inference._give_up(self.call, self.exchange, failed), "x")


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    made.engines.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("failed", "status", "code", "outcome"),
    [
        (Failed("connect"), 502, "upstream_error", "engine_error"),
        (Failed("connect_timeout"), 504, "upstream_timeout", "timeout"),
        (Failed("first_event_timeout"), 504, "upstream_timeout", "timeout"),
        (Failed("cut_before_head"), 502, "upstream_error", "engine_error"),
        (Failed("engine_5xx", 500, b"at /opt/x"), 502, "upstream_error", "engine_error"),
        (Failed("engine_busy", 429), 503, "server_is_overloaded", "engine_error"),
        (Failed("misconfigured", 401), 503, "upstream_misconfigured", "engine_error"),
        (Failed("engine_4xx", 422), 422, "", "refused_by_engine"),
    ],
)
async def test_the_last_failure_is_the_callers_error(bench, failed, status, code, outcome):
    told = bench.give_up(failed)

    assert (told.status, told.code) == (status, code)
    assert bench.exchange.outcome == outcome
    assert bench.exchange.status == status


@pytest.mark.parametrize(
    ("asked_s", "headers"),
    [
        (None, {b"retry-after": b"1", b"retry-after-ms": b"1000"}),
        (1.5, {b"retry-after": b"2", b"retry-after-ms": b"1500"}),
        (
            120.0,
            {b"retry-after": b"120", b"retry-after-ms": b"120000", b"x-should-retry": b"false"},
        ),
    ],
)
async def test_a_busy_engines_wait_is_passed_on(bench, asked_s, headers):
    assert dict(bench.give_up(Failed("engine_busy", 503, b"", asked_s)).headers) == headers


async def test_a_stream_whose_head_went_out_is_recorded_with_its_200(bench):
    bench.call.reply.started = True
    bench.give_up(Failed("connect"))

    assert bench.exchange.status == 200


async def test_a_stop_error_is_the_callers(bench):
    bench.call.stop("timeout", Overdue())
    error = bench.inference._after_commit(bench.call, bench.exchange, Ended("timeout"))

    assert error.status == 504


@pytest.mark.parametrize(
    ("prompts", "plan", "needs"),
    [
        (1, Plan(100, 50, 150, None), 150),
        (1, Plan(100, 50, 150, 50), 100),  # our own cap bends to the context
        (4, Plan(100, 50, 300, None), 75),
        (1, Plan(9, 0, 9, None), 9),
    ],
)
def test_a_request_needs_a_window_for_its_longest_sequence(prompts, plan, needs):
    assert _longest(exchange(MODEL, prompts=prompts), plan) == needs
