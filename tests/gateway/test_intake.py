"""What a request reserves, and what is refused before anything is held."""

import asyncio
import inspect

import pytest

from gateway.call import Call
from gateway.contract.envelope import parse
from gateway.contract.errors import InvalidBody, LimitExceeded
from gateway.engines import Engines
from gateway.intake import Intake
from gateway.snapshot import ModelDoc, Snapshot
from gateway.telemetry.counters import Counters
from gateway.telemetry.tracing import context_from
from gateway.terms import Calendar, Terms
from gateway.wire.reply import Reply
from quotas.leases import Draw
from quotas.unbilled import UnbilledEndings
from tests.support.calls import REQUEST_ID, exchange, principal, request

MODEL = ModelDoc(id=4, name="llama", upstream="up/llama", pool_id=1, max_output_tokens=50)
CHAT = b'{"model":"llama","messages":[{"role":"user","content":"hi"}]%b}'


class Bench:
    """An intake without a store: all that is decided before it is asked."""

    def __init__(self):
        self.unbilled = UnbilledEndings(1)
        unused = dict.fromkeys(inspect.signature(Intake).parameters)
        self.intake = Intake(
            **unused
            | {
                "snapshot": Snapshot(),
                "engines": Engines({}, idle_s=4.0),
                "counters": Counters(),
                "unbilled": self.unbilled,
                "monotonic": lambda: 100.0,
                "unix_ms": lambda: 1_000,
            }
        )

    def call(self, more: bytes = b"") -> Call:
        reply = Reply(None, is_head=False, chunked=True, close=False, on_done=lambda close: None)
        trace = context_from(None, "ab" * 16, "cd" * 8, sample=False)
        body = CHAT % more
        call = Call(request(body), reply, REQUEST_ID, trace)
        call.envelope = parse(body, "chat")
        return call

    def plan(self, more: bytes = b""):
        call = self.call(more)
        terms = Terms(principal(), MODEL, Calendar(None), ())
        return self.intake._plan(terms, call.envelope, call, None)


@pytest.fixture
async def bench():
    yield Bench()
    await asyncio.sleep(0)


def test_the_callers_cap_is_reserved_for_and_the_models_injected_where_there_is_none(bench):
    said, unsaid = bench.plan(b',"max_tokens":7,"n":2'), bench.plan()

    assert (said.cap, said.output, said.inject_cap) == (7, 14, None)
    assert (unsaid.cap, unsaid.output, unsaid.inject_cap) == (50, 50, 50)


def test_more_tokens_than_the_answer_may_have_cannot_be_demanded(bench):
    with pytest.raises(InvalidBody) as refused:
        bench.plan(b',"max_tokens":7,"min_tokens":8')

    assert refused.value.param == "min_tokens"


def test_what_engines_count_is_learned_for_the_next_text_of_its_size(bench):
    first = bench.plan()
    for _ in range(40):
        call = bench.call()
        call.exchange = exchange(MODEL)
        bench.intake.learn(call, 5)
    bench.intake.learn(bench.call(), None)  # nobody counted, or it never came so far

    assert bench.plan().prompt_estimate == 5 < first.prompt_estimate


async def test_a_tier_without_a_price_is_refused(bench):
    call = bench.call(b',"service_tier":"priority"')
    with pytest.raises(InvalidBody) as refused:
        await bench.intake.admit(call, principal(), MODEL)

    assert refused.value.param == "service_tier"


async def test_endings_that_bill_nothing_are_bounded_before_anything_else(bench):
    bench.unbilled.note(principal().key.id, 100.0)
    with pytest.raises(LimitExceeded) as refused:
        await bench.intake.admit(bench.call(), principal(), MODEL)

    assert "unbilled endings" in str(refused.value)


def test_what_was_drawn_from_leases_is_given_back_once(bench):
    given = []

    class Admission:
        def put_back(self, request_id, draw):
            given.append((request_id, draw))

    bench.intake._admission = Admission()
    call = bench.call()
    draw = call.draw = Draw(())
    bench.intake.give_back(call)  # it spills, and draws again
    bench.intake.give_back(call)

    assert given == [(REQUEST_ID, draw)]
    assert call.draw is None
