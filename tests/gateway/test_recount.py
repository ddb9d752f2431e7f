"""Asking an engine what it did not count: bounded, few at once, its own credential, no errors."""

import asyncio
import json

import pytest

from gateway import recount
from gateway.contract.envelope import parse
from gateway.contract.transcript import Transcript
from gateway.engine_counts import EngineCounts
from gateway.recount import ASKS_MAX, Counted, Recount
from gateway.telemetry.counters import Counters
from gateway.wire.fetch import Fetched, FetchFailed
from quotas.record import AttemptEntry
from routing.topology import Endpoint

BODY = b'{"model": "llama", "messages": [{"role": "user", "content": "hi"}]}'


class FakeEngine:
    def __init__(self, dialect="vllm"):
        self.endpoint = Endpoint(id=7, pool_id=1, url="http://10.0.0.5:8000", dialect=dialect)
        self.credential = b"secret"


class Engines:
    def __init__(self, engine):
        self.engine = engine
        self.signals = {}

    def find(self, endpoint_id):
        return self.engine if endpoint_id == 7 else None

    def headers_for(self, _endpoint):
        return [(b"authorization", b"Bearer secret")]


class Exchange:
    def __init__(self, *, delivered=True, attempts=1):
        self.attempts = [AttemptEntry(7, "http://10.0.0.5:8000", 0, 1, 200, 0, 0, 1)] * attempts
        self.fold = Transcript(1, 1)
        self.delivered = delivered
        self.model = type("Model", (), {"upstream": "meta/llama"})


class Call:
    def __init__(self, exchange):
        self.exchange = exchange
        self.envelope = parse(BODY, "chat")
        self.request = type("Request", (), {"body": BODY})


class Site:
    """An engine's /tokenize and a clock."""

    def __init__(self, answer=(200, b'{"count": 9}'), dialect="vllm"):
        self.answer = answer
        self.asked = []
        self.now_s = 100.0
        self.counters = Counters()
        self.engine = FakeEngine(dialect)
        engines = Engines(self.engine)
        self.counts = EngineCounts(engines, self.fetch, self.now)
        self.recount = Recount(engines, self.counts, self.counters)

    def now(self):
        return self.now_s

    async def fetch(self, address, method, path, *, headers, body, **_):
        self.asked.append((method, path, dict(headers), json.loads(body)))
        if isinstance(self.answer, Exception):
            raise self.answer
        status, said = self.answer
        return Fetched(status, [], said)

    async def ask(self, exchange):
        counted = Counted()
        await self.recount.ask(Call(exchange), self.engine, counted)
        return counted.prompt, counted.completion

    def results(self):
        return self.counters.counters.get("tf_recounts_total", {})


async def test_prompt_and_answer_are_counted_where_the_engine_told_neither():
    site = Site()
    exchange = Exchange()
    exchange.fold.look(b'data: {"choices":[{"index":0,"delta":{"content":"one two"}}]}\n\n')

    assert await site.ask(exchange) == (9, 9)
    assert [each[:2] for each in site.asked] == [("POST", "/tokenize")] * 2
    assert site.asked[0][2][b"authorization"] == b"Bearer secret"
    assert site.asked[0][3]["messages"] == [{"role": "user", "content": "hi"}]
    assert site.asked[1][3]["prompt"] == "one two"
    assert site.results() == {"counted": 1}


async def test_what_was_told_is_not_asked_and_what_was_not_delivered_neither():
    site = Site()
    exchange = Exchange(delivered=False)
    exchange.fold.look(b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n')
    assert await site.ask(exchange) == (9, None)
    exchange = Exchange()
    exchange.fold.prompt = 5
    exchange.fold.completion = 1
    assert await site.ask(exchange) == (None, None)


@pytest.mark.parametrize(
    "answer", [FetchFailed("cut"), (500, b"{}"), (200, b"<html>"), (200, b"[]")], ids=str
)
async def test_an_engine_that_fails_leaves_the_estimate(answer):
    site = Site(answer)
    exchange = Exchange()
    exchange.fold.look(b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n')

    assert await site.ask(exchange) == (None, None)
    assert site.results() == {"failed": 1}
    assert site.recount.may_ask(Call(Exchange())) is site.engine


async def test_an_engine_without_tokenize_is_left_alone_for_a_while():
    site = Site((404, b"{}"))
    await site.ask(Exchange())

    assert site.recount.may_ask(Call(Exchange())) is None
    site.now_s += 61
    assert site.recount.may_ask(Call(Exchange())) is site.engine


async def test_only_engines_of_a_kind_that_counts_are_asked_and_only_who_served():
    assert Site(dialect="openai").recount.may_ask(Call(Exchange())) is None
    assert Site(dialect="nim").recount.may_ask(Call(Exchange())) is not None
    assert Site().recount.may_ask(Call(Exchange(attempts=0))) is None


async def test_few_are_asked_at_once_and_nobody_for_ever(monkeypatch):
    monkeypatch.setattr(recount, "ASK_S", 0.2)
    site = Site()

    async def never(*_, **__):
        await asyncio.Event().wait()

    site.counts._fetch = never
    asks = [asyncio.ensure_future(site.ask(Exchange())) for _ in range(ASKS_MAX)]
    await asyncio.sleep(0)
    assert site.recount.may_ask(Call(Exchange())) is None
    async with asyncio.timeout(2):
        assert await asyncio.gather(*asks) == [(None, None)] * ASKS_MAX
    assert site.recount.may_ask(Call(Exchange())) is site.engine
    assert site.results() == {"busy": 1, "failed": ASKS_MAX}
