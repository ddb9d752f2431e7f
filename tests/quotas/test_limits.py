"""Limits as values: charges of a request, and what true counts come to."""

import pytest

from quotas.calendar import periods_at
from quotas.limits import Charge, Limit, charges_for, counted
from quotas.usage import TokenUsage


def limit(dimension="tokens", algorithm="bucket", window="minute", **more):
    return Limit("t1", "tenant a", dimension, algorithm, 10, 10, 1, window, **more)


def test_every_limit_is_charged_its_dimension_and_quotas_get_their_periods():
    day = periods_at("day", 1_764_115_200_000)
    rate, quota, slots = limit(), limit("tokens", "quota", "day"), limit("concurrency")

    charges = charges_for((rate, quota, slots), {"tokens": 7}, {"day": day})

    assert charges == (Charge(rate, 7), Charge(quota, 7, day), Charge(slots, 0))
    assert charges_for((rate,), {"tokens": 7}) == (Charge(rate, 7),)


USAGE = TokenUsage(prompt=100, cached=55, completion=7)


@pytest.mark.parametrize(
    ("dimension", "permille", "units"),
    [
        ("tokens", 1000, 107),
        ("tokens", 0, 52),
        ("tokens", 100, 58),  # 5.5 cached tokens count 6
        ("input_tokens", 1000, 100),
        ("input_tokens", 500, 73),
        ("output_tokens", 0, 7),
        ("requests", 500, 0),
        ("money", 1000, 0),
    ],
)
def test_cached_input_counts_by_its_weight(dimension, permille, units):
    assert counted(limit(dimension, cached_permille=permille), USAGE) == units


def test_engine_that_counts_more_cached_than_prompt_makes_nothing_negative():
    usage = TokenUsage(prompt=10, cached=50, completion=1)

    assert counted(limit(cached_permille=0), usage) == 1
