"""Events as values: ids that are the same whoever tells, amounts that are exact."""

from gateway.events import Names, correction_event, rfc3339, usage_event

NAMES = Names(tenant="acme", project="bot", key="ci", model="llama")
ROW = {"request_id": "r1", "started_ms": 1_800_000_000_001, "outcome": "ok",
       "source": "engine_final", "cost_nano": 2_500_000, "charged_nano": 1, "currency": "USD"}  # fmt: skip


def test_a_records_event_has_its_id_every_meter_and_exact_amounts():
    made = usage_event(NAMES, ROW, "chat", {"prompt_tokens": 10, "completion_tokens": 3}, 4)

    assert (made.id, made.subject, made.time_ms) == ("r1", "acme", 1_800_000_000_001)
    data = made.data
    assert (data["total_tokens"], data["cached_tokens"], data["requests"]) == (13, 0, 1)
    assert (data["cost"], data["charged"], data["currency"]) == ("0.0025", "0.000000001", "USD")
    assert made == usage_event(NAMES, ROW, "chat", {"prompt_tokens": 10, "completion_tokens": 3}, 4)


def test_a_record_without_price_and_names_is_told_all_the_same():
    nobody = Names(tenant=None, project=None, key=None, model=None)
    made = usage_event(nobody, ROW | {"currency": "", "cost_nano": 0}, "chat", {}, None)

    assert (made.subject, made.data["currency"], made.data["cost"]) == ("", None, "0")


def test_a_corrections_event_is_named_after_its_entry():
    entry = {"entry_key": "reversal:r1:1", "kind": "reversal", "reverses": "use:r1",
             "occurred_ms": 5, "currency": "USD"}  # fmt: skip
    made = correction_event(NAMES, "r1", entry, -2_500_000)

    assert (made.id, made.data["request_id"]) == ("reversal:r1:1", "r1")
    assert (made.data["charged"], made.data["reverses"]) == ("-0.0025", "use:r1")


def test_times_are_utc_with_milliseconds():
    assert rfc3339(1_800_000_000_007) == "2027-01-15T08:00:00.007Z"
