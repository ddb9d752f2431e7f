"""Counts onto meters, meters onto money."""

from hypothesis import given
from hypothesis import strategies as st

from quotas.money import parse_price
from quotas.pricing import METERS, billed_meters, cost_by_meter
from quotas.usage import TokenUsage, usage_from

counts = st.integers(0, 10**7)


def test_cached_tokens_have_their_own_meter_where_the_price_names_one():
    usage = TokenUsage(prompt=100, cached=30, completion=7, reasoning=5)

    assert billed_meters(usage, METERS) == {"input": 70, "cached_input": 30, "output": 7}


def test_cached_tokens_count_as_input_where_it_does_not():
    usage = TokenUsage(prompt=100, cached=30, completion=7)

    assert billed_meters(usage, ("input", "output")) == {"input": 100, "output": 7}


def test_zero_is_billed_as_a_line_of_zero():
    assert billed_meters(TokenUsage(), METERS) == {"input": 0, "cached_input": 0, "output": 0}


@given(counts, counts, counts)
def test_no_token_is_billed_twice_or_lost_whatever_an_engine_reports(prompt, cached, completion):
    billed = billed_meters(TokenUsage(prompt, cached, completion), METERS)

    assert billed["input"] + billed["cached_input"] == prompt
    assert min(billed.values()) >= 0


def test_each_meter_costs_its_own_price():
    prices = {"input": parse_price("0.10"), "output": parse_price("0.40")}

    cost = cost_by_meter({"input": 1_000_000, "cached_input": 5, "output": 500}, prices)

    assert cost == {"input": 100_000_000, "cached_input": 0, "output": 200_000}


@given(counts, counts, counts, counts)
def test_usage_survives_the_record(prompt, cached, completion, reasoning):
    usage = TokenUsage(prompt, cached, completion, reasoning)

    assert usage_from(usage.meters()) == usage
    assert usage.total == prompt + completion
