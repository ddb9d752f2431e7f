"""Counts onto meters: every token on one of them, none on two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.meters import (
    CACHE_WRITE,
    CACHED_INPUT,
    INPUT,
    INPUT_METERS,
    OUTPUT_METERS,
    PER,
    REASONING,
    units_of,
)

counts = st.integers(0, 10**7)
usages = st.fixed_dictionaries(
    {
        "prompt_tokens": counts,
        "cached_tokens": counts,
        "cache_write_tokens": counts,
        "completion_tokens": counts,
        "reasoning_tokens": counts,
    }
)


@given(
    usages, st.sets(st.sampled_from(sorted(PER))), st.sampled_from(["chat", "embeddings", "rerank"])
)
def test_no_token_is_lost_or_counted_twice_whatever_is_priced(usage, priced, operation):
    units = units_of(usage, priced, operation)

    assert sum(units.get(meter, 0) for meter in INPUT_METERS) == usage["prompt_tokens"]
    assert sum(units.get(meter, 0) for meter in OUTPUT_METERS) == usage["completion_tokens"]
    assert min(units.values()) >= 0


def test_parts_leave_the_whole_where_the_price_names_them():
    usage = {"prompt_tokens": 100, "cached_tokens": 60, "cache_write_tokens": 30,
             "completion_tokens": 50, "reasoning_tokens": 20}  # fmt: skip

    units = units_of(usage, (INPUT, CACHED_INPUT, CACHE_WRITE, REASONING))

    assert units == {
        "input": 10,
        "cached_input": 60,
        "cache_write": 30,
        "output": 30,
        "reasoning": 20,
    }


@pytest.mark.parametrize(
    ("operation", "priced", "meter"),
    [
        ("embeddings", ("embedding",), "embedding"),
        ("embeddings", ("input",), "input"),
        ("rerank", ("rerank",), "rerank"),
        ("chat", ("embedding", "rerank"), "input"),
    ],
)
def test_an_operation_has_its_own_meter_where_the_price_names_it(operation, priced, meter):
    assert units_of({"prompt_tokens": 7}, priced, operation)[meter] == 7


def test_requests_images_and_seconds_are_counted_one_by_one():
    usage = {"prompt_tokens": 1, "images": 2, "audio_seconds": 30}

    units = units_of(usage, ("requests", "images", "audio_seconds"))

    assert (units["requests"], units["images"], units["audio_seconds"]) == (1, 2, 30)


def test_a_record_that_counts_nothing_is_no_request_to_bill():
    assert units_of({"prompt_tokens": 0, "completion_tokens": 0}, ("requests",))["requests"] == 0
