"""An endpoint is judged by what it did, and the operator told what is his to put right."""

import asyncio
import logging

import pytest

from gateway.call import Call
from gateway.contract.envelope import parse
from gateway.engines import Engines
from gateway.health import Health
from gateway.snapshot import ModelDoc, Snapshot
from gateway.telemetry.counters import Counters
from gateway.wire.relay import Ended, Failed
from routing.topology import Pool
from tests.support.calls import REQUEST_ID, exchange, request
from tests.support.topology import endpoint

MODEL = ModelDoc(id=4, name="llama", upstream="up/llama", pool_id=1)
STREAMED = b'{"model":"llama","messages":[],"stream":true}'


class Bench:
    def __init__(self):
        self.now_s = 100.0
        self.endpoint = endpoint(7)
        snapshot = Snapshot()
        snapshot.pools[1] = Pool(id=1, name="p", endpoints=(self.endpoint,))
        self.engines = Engines({}, idle_s=4.0)
        self.engines.sync(snapshot)
        self.counters = Counters()
        self.health = Health(self.engines, self.counters, lambda: self.now_s)
        self.exchange = exchange(MODEL)

    @property
    def load(self):
        return self.engines.loads[7]

    def judge(self, outcome):
        self.health.judge(self.exchange, self.endpoint, outcome)

    def teaches(self, outcome, body=STREAMED):
        call = Call(request(body), None, REQUEST_ID, None)
        call.envelope = parse(body, "chat")
        return self.health.teaches(call, self.endpoint, outcome)


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    made.engines.close()
    await asyncio.sleep(0)


async def test_an_endpoint_is_judged_by_what_it_did(bench):
    bench.judge(Failed("engine_5xx", 500))
    assert bench.load.consecutive_failures == 1
    bench.judge(Ended("client_abort"))  # left before its first event: it says nothing
    assert bench.load.consecutive_failures == 1
    bench.exchange.first_event_s = 101.0
    bench.judge(Ended("client_abort"))
    assert bench.load.consecutive_failures == 0
    bench.judge(Ended("timeout"))
    assert bench.load.consecutive_failures == 1
    bench.judge(Failed("engine_busy", 503, b"", 7.0))
    assert (bench.load.consecutive_failures, bench.load.back_off_until_s) == (0, 107.0)


async def test_a_misconfigured_endpoint_is_counted_always_and_told_once_a_minute(bench, caplog):
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            bench.judge(Failed("misconfigured", 401))
        bench.now_s += 61
        bench.judge(Failed("misconfigured", 401))

    assert bench.counters.counters["tf_upstream_misconfigured_total"] == {"llama": 4}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "answers 401 to us" in told[0]
    assert bench.load.consecutive_failures == 0


async def test_a_kept_socket_that_had_died_is_nobodys_failure(bench):
    assert bench.teaches(Failed("cut_before_head", reused=True))
    assert not bench.teaches(Failed("cut_before_head"))


async def test_an_engine_that_refuses_to_count_is_asked_for_less_until_nothing_is_left(bench):
    refused = Failed("engine_4xx", 400, b"stream_options.continuous_usage_stats is not known")
    modes = []
    for _ in range(3):
        modes.append(bench.engines.get(bench.endpoint).usage_mode(None))
        if not bench.teaches(refused):
            break

    assert modes == ["continuous", "final", "none"]
    assert not bench.teaches(Failed("engine_4xx", 400, b"temperature is too high"))
