"""What a dead slot is charged, billed and recorded as, where the kill-point table does not say."""

import msgspec

from gateway.metering.inquest import context_from, record_of, settlement_of
from gateway.metering.slots import AttemptImage, EndedImage, Progress, SlotImage, SlotState
from gateway.snapshot import (
    KeyDoc,
    ModelDoc,
    Move,
    ProjectDoc,
    Snapshot,
    TenantDoc,
    encode_doc,
)
from quotas.limits import Charge
from quotas.pricing import Price
from quotas.record import Outcome, Source
from routing.topology import Endpoint, Pool
from tests.support.lives import CONTEXT, LIMITS, RESERVED_TOKENS

AMOUNTS = (1, 3, 4, 7, 1, 9)


def image(
    *,
    prompts: int = 1,
    progress: Progress | None = None,
    ended: EndedImage | None = None,
    failed: bool = False,
    key_id: int = 13,
) -> SlotImage:
    return SlotImage(
        index=0,
        state=SlotState.ENDED if ended else SlotState.DISPATCHED,
        generation=1,
        request_id="ab" * 16,
        tenant_id=11,
        project_id=12,
        key_id=key_id,
        model_id=14,
        price_id=15,
        operation="chat",
        choices=2,
        prompts=prompts,
        estimate=40,
        cap=100,
        started_ms=1_000,
        epoch="e",
        attempts=(AttemptImage(0, 7, 20, 0, 0, 0, 0, failed),),
        progress=progress,
        ended=ended,
    )


def ending(
    outcome: Outcome, source: Source, prompt: int = 0, completion: int = 0, cached: int = 0
) -> EndedImage:
    return EndedImage(outcome, source, prompt, cached, completion, 0, 200, 30, 400)


def tokens_charged(found: SlotImage) -> int:
    return settlement_of(found, CONTEXT).charged[1].amount


def test_limits_get_back_only_what_was_proven_unused() -> None:
    assert tokens_charged(image()) == RESERVED_TOKENS
    assert tokens_charged(image(progress=Progress(0, 9, 4, delivered=True))) == 13
    assert tokens_charged(image(ended=ending("ok", "engine_final", 9, 4))) == 13
    assert tokens_charged(image(ended=ending("refused_by_engine", "none"))) == 0
    assert tokens_charged(image(ended=ending("timeout", "none"))) == RESERVED_TOKENS
    assert tokens_charged(image(ended=ending("ok", "estimated", 9, 4))) == RESERVED_TOKENS


def test_requests_and_concurrency_are_charged_as_for_the_living() -> None:
    settled = settlement_of(image(), CONTEXT)
    assert [charge.limit for charge in settled.charged] == list(LIMITS)
    assert [charge.amount for charge in settled.charged] == [1, RESERVED_TOKENS, 0]
    assert (settled.tag, settled.epoch) == ("t11", "e")


def test_a_key_that_is_gone_leaves_every_limit_as_reserved() -> None:
    assert settlement_of(image(key_id=99), CONTEXT).charged == ()


def test_an_ended_slot_keeps_its_outcome_and_times() -> None:
    record = record_of(image(ended=ending("client_abort", "engine_partial", 9, 4)), CONTEXT)
    assert (record.outcome, record.source, record.status) == ("client_abort", "engine_partial", 200)
    assert (record.ttft_ms, record.total_ms) == (30, 400)
    (attempt,) = record.attempts
    assert (attempt.started_ms, attempt.ended_ms) == (1_020, 1_400)
    assert (attempt.prompt_tokens, attempt.completion_tokens, attempt.choices) == (9, 4, 2)


def test_a_crash_after_tokens_went_out_with_status_200() -> None:
    record = record_of(image(progress=Progress(0, 9, 4, delivered=True)), CONTEXT)
    assert (record.status, record.ttft_ms, record.total_ms) == (200, -1, 20)
    assert record_of(image(), CONTEXT).status == 0


def test_choices_are_a_prompts_as_in_the_records_of_the_living() -> None:
    record = record_of(image(prompts=3), CONTEXT)
    assert (record.choices, record.attempts[0].choices) == (2, 2)
    assert (record.prompts, record.prompt_estimate, record.cap) == (3, 40, 100)


def test_counts_seen_before_a_token_was_delivered_are_kept_as_cost_and_not_billed() -> None:
    record = record_of(image(progress=Progress(0, 9, 0, delivered=False)), CONTEXT)
    assert record.billed == {"input": 0, "output": 0}
    assert record.attempts[0].prompt_tokens == 9


def test_the_context_of_a_snapshot_follows_its_changes() -> None:
    snapshot = Snapshot()
    context = context_from(snapshot)
    assert context.charges_of(13, 14, AMOUNTS, 0, False) == ()
    assert context.endpoint_name(7) == ""
    assert context.meters_of(14, 15) != ()
    price = Price(id=15, version=1, currency="EUR", nano={"input": 1, "output": 2})
    docs = [
        Move("tenant", 11, encode_doc(TenantDoc(id=11, name="acme", limits=LIMITS[:1]))),
        Move("project", 12, encode_doc(ProjectDoc(id=12, tenant_id=11, name="chat"))),
        Move(
            "key",
            13,
            encode_doc(
                KeyDoc(
                    id=13,
                    project_id=12,
                    name="ci",
                    path="acme/chat/ci",
                    secrets=(),
                    limits=LIMITS[1:],
                )
            ),
        ),
        Move(
            "model", 14, encode_doc(ModelDoc(id=14, name="m", upstream="m", pool_id=1, price=price))
        ),
        Move(
            "pool",
            1,
            encode_doc(
                Pool(id=1, name="p", endpoints=(Endpoint(id=7, pool_id=1, url="http://one"),))
            ),
        ),
    ]
    snapshot.apply(1, docs)
    charges = context.charges_of(13, 14, AMOUNTS, 0, False)
    assert [(each.limit, each.amount) for each in charges] == [
        (LIMITS[0], 1), (LIMITS[1], 7), (LIMITS[2], 1),
    ]  # fmt: skip
    assert context.price_of(14, 15) == price
    assert context.price_of(14, 16) is None
    assert context.endpoint_name(7) == "http://one"
    assert set(context.meters_of(14, 15)) == {"input", "output"}  # type: ignore[call-overload]
    assert "cached_input" in context.meters_of(14, 16)


def test_what_was_admitted_on_reserved_throughput_is_recorded_and_charged_as_such() -> None:
    asked = []

    def charges_of(*question: object) -> tuple[Charge, ...]:
        asked.append(question[-1])
        return ()

    context = msgspec.structs.replace(CONTEXT, charges_of=charges_of)
    found = [record_of(image(), context)]
    found.append(record_of(msgspec.structs.replace(image(), reserved=True), context))

    assert [each.reserved for each in found] == [False, True]
    assert asked == [False, True]
