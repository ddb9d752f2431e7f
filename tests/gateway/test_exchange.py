"""The state machine of a request: what may follow what, and what an ending leaves."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.usage import fold_unary
from gateway.exchange import TABLE, Event, Exchange, IllegalMove, State
from gateway.snapshot import KeyDoc, ModelDoc, Principal, ProjectDoc, TenantDoc
from quotas.limits import Limit, charges_for
from quotas.pricing import Price
from quotas.record import FORMAT_VERSION, AttemptEntry
from routing.topology import Endpoint

LIMITS = (
    Limit("t1", "tenant acme", "requests", "bucket", 60, 60, 1),
    Limit("p1", "project acme/bot", "tokens", "bucket", 1000, 1000, 1),
    Limit("k1", "key acme/bot/ci", "concurrency", "concurrency", 4, 0, 1),
)
ENDPOINT = Endpoint(id=7, pool_id=1, url="http://e")
CHUNK = (
    b'data: {"id":"x","object":"c","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"a"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":16,'
    b'"total_tokens":%d,"completion_tokens":%d}}\n\n'
)


WHOLE = (
    b'{"choices":[],"usage":{"prompt_tokens":16,"completion_tokens":5,"prompt_tokens_details":'
    b'{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":2}}}'
)


def exchange() -> Exchange:
    key = KeyDoc(id=3, project_id=2, name="ci", path="acme/bot/ci", secrets=(), limits=LIMITS[2:])
    price = Price(id=9, version=1, currency="USD", nano={"input": 1, "output": 1})
    return Exchange(
        request_id="ab" * 16,
        principal=Principal(
            key,
            ProjectDoc(id=2, tenant_id=1, name="bot", limits=LIMITS[1:2]),
            TenantDoc(id=1, name="acme", limits=LIMITS[:1]),
        ),
        model=ModelDoc(id=4, name="m", upstream="m", pool_id=1, price=price),
        operation="chat",
        prompts=1,
        n=1,
        prompt_estimate=20,
        cap=30,
        charges=charges_for(LIMITS, {"requests": 1, "tokens": 500, "concurrency": 1}),
        epoch="e",
        arrived_s=10.0,
        started_ms=1_000,
    )


def see(made: Exchange, completion: int) -> None:
    made.fold.look(CHUNK % (16 + completion, completion))


def charged(closing) -> list[int]:
    return [charge.amount for charge in closing.settlement.charged]


MOVES = {
    Event.DISPATCH: lambda made: made.dispatch(ENDPOINT, 1_100),
    Event.FAIL_ATTEMPT: lambda made: made.fail_attempt(500, 1_200),
    Event.COMMIT: lambda made: made.commit(10.5),
    Event.END: lambda made: made.end("ok", 200, 2_000),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_only_the_tables_moves_are_allowed(state, event):
    made = exchange()
    if event is Event.FAIL_ATTEMPT:
        made.dispatch(ENDPOINT, 1_100)
    made.state = state

    if event in TABLE[state]:
        MOVES[event](made)
        assert made.state is TABLE[state][event]
    elif event is Event.END:  # the first ending stands
        assert not MOVES[event](made)
    else:
        with pytest.raises(IllegalMove):
            MOVES[event](made)


def test_request_no_engine_saw_leaves_no_record_and_charges_no_token():
    made = exchange()
    made.end("engine_error", 503, 2_000)
    closing = made.closing(11.0)

    assert closing.record is None
    assert charged(closing) == [1, 0, 0]


def test_finished_stream_records_and_charges_what_the_engine_counted():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.5)
    see(made, 5)
    made.delivered = True
    assert made.end("ok", 200, 2_000)
    record = made.closing(12.0).record

    assert record.usage["prompt_tokens"] == 16
    assert record.usage["completion_tokens"] == 5
    assert record.billed == {"input": 16, "output": 5}
    assert (record.source, record.outcome, record.ttft_ms, record.total_ms) == (
        "engine_partial", "ok", 500, 2000,
    )  # fmt: skip
    assert charged(made.closing(12.0)) == [1, 21, 0]
    assert [entry.endpoint for entry in record.attempts] == ["http://e"]


def test_whole_answer_leaves_every_field_of_its_record_in_its_place():
    made = exchange()
    made.reserved, made.prompts, made.n = True, 3, 2
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.25)
    fold_unary(made.fold, WHOLE)
    made.end("ok", 200, 2_000)
    closing = made.closing(12.0)

    assert msgspec.structs.asdict(closing.record) == {
        "v": FORMAT_VERSION,
        "request_id": "ab" * 16,
        "tenant_id": 1,
        "project_id": 2,
        "key_id": 3,
        "model_id": 4,
        "price_id": 9,
        "operation": "chat",
        "choices": 2,
        "prompts": 3,
        "reserved": True,
        "prompt_estimate": 20,
        "cap": 30,
        "attempts": (AttemptEntry(7, "http://e", 1_100, 2_000, 200, 16, 5, 2),),
        "usage": {
            "prompt_tokens": 16,
            "cached_tokens": 8,
            "completion_tokens": 5,
            "reasoning_tokens": 2,
        },
        "billed": {"input": 16, "output": 5},
        "source": "engine_final",
        "outcome": "ok",
        "status": 200,
        "started_ms": 1_000,
        "ttft_ms": 250,
        "total_ms": 2_000,
        "epoch": "e",
        "charged": closing.settlement.charged,
    }
    assert charged(closing) == [1, 21, 0]


@given(st.floats(-1, 1e6), st.floats(-1, 1e6))
def test_times_are_to_the_nearest_millisecond_and_never_below_zero(first_s, total_s):
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.0 + first_s)
    made.end("ok", 200, 2_000)
    record = made.closing(10.0 + total_s).record

    assert record.ttft_ms == pytest.approx(max(0.0, first_s * 1000), abs=0.51)
    assert record.total_ms == pytest.approx(max(0.0, total_s * 1000), abs=0.51)


def test_first_ending_stands():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.5)

    assert made.end("client_abort", 200, 2_000)
    assert not made.end("ok", 200, 2_001)
    assert made.outcome == "client_abort"


def test_failed_attempt_is_kept_and_counts_nothing_of_the_next():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    see(made, 3)
    made.fail_attempt(500, 1_200)
    made.dispatch(ENDPOINT, 1_300)
    made.commit(10.5)
    see(made, 1)
    made.delivered = True
    made.end("ok", 200, 2_000)
    record = made.closing(12.0).record

    assert [entry.status for entry in record.attempts] == [500, 200]
    assert [entry.completion_tokens for entry in record.attempts] == [3, 1]
    assert record.usage["completion_tokens"] == 1


def test_engine_that_answered_an_error_refunds_the_tokens():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.fail_attempt(500, 1_200)
    made.end("engine_error", 0, 1_300)

    assert charged(made.closing(12.0)) == [1, 0, 0]


def test_silence_of_an_engine_proves_nothing_unused():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.fail_attempt(0, 1_200)
    made.end("timeout", 0, 1_300)
    closing = made.closing(12.0)

    assert charged(closing) == [1, 500, 0]
    assert closing.record.usage["prompt_tokens"] == 0


def test_client_that_leaves_a_unary_answer_pays_the_prompts_estimate():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.5)
    made.end("client_abort", 0, 2_000)
    record = made.closing(12.0).record

    assert (record.usage["prompt_tokens"], record.usage["completion_tokens"]) == (20, 0)
    assert record.source == "estimated"


def test_an_answer_that_only_a_tokenizer_counted_is_charged_whole():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100, transcribe=True)
    made.commit(10.5)
    made.delivered = True
    made.end("ok", 200, 2_000)
    closing = made.closing(12.0, 18, 7)

    assert (closing.record.source, closing.record.billed) == (
        "tokenized",
        {"input": 18, "output": 7},
    )
    assert charged(closing) == [1, 25, 0]
    assert charged(made.closing(12.0)) == [1, 500, 0]  # an estimate proves nothing


def test_a_prompt_that_only_a_tokenizer_counted_refunds_nothing_of_a_cut_answer():
    made = exchange()
    made.dispatch(ENDPOINT, 1_100, transcribe=True)
    made.end("client_abort", 0, 2_000)
    closing = made.closing(12.0, 18, None)

    assert (closing.record.source, closing.record.billed) == (
        "tokenized",
        {"input": 18, "output": 0},
    )
    assert charged(closing) == [1, 500, 0]


def test_what_all_tenants_share_comes_to_the_same_counts_as_the_tenants_own():
    made = exchange()
    made.shared = charges_for(
        (Limit("A", "platform", "tokens", "bucket", 9000, 1, 1),), {"tokens": 500}
    )
    made.dispatch(ENDPOINT, 1_100)
    made.commit(10.5)
    see(made, 4)
    made.end("client_abort", 200, 2_000)

    assert [each.amount for each in made.closing(12.0).shared] == [20]
    assert "A" not in [each.limit.scope for each in made.closing(12.0).settlement.charged]


def test_the_record_says_that_reserved_throughput_covers_it():
    assert not ended_record(reserved=False).reserved
    assert ended_record(reserved=True).reserved


def ended_record(*, reserved):
    made = exchange()
    made.reserved = reserved
    made.dispatch(ENDPOINT, 1_000)
    made.end("client_abort", 0, 1_100)
    return made.closing(11.0).record
