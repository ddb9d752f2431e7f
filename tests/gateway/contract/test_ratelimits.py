"""The x-ratelimit headers: which limit binds, and Go's durations."""

import pytest

from gateway.contract.ratelimits import duration, rate_headers
from quotas.limits import Charge, Level, Limit


def charge(dimension: str, capacity: int) -> Charge:
    return Charge(Limit("k1", "key a/b/c", dimension, "bucket", capacity, capacity, 1), 1)


def test_limit_with_least_left_is_shown_in_each_family():
    charges = (charge("requests", 600), charge("requests", 60), charge("tokens", 1000))
    levels = (Level(10, 500), Level(5, 2000), Level(-3, 60_000))

    assert dict(rate_headers(charges, levels)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"5",
        b"x-ratelimit-reset-requests": b"2s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_no_limits_no_headers():
    assert rate_headers((), ()) == []


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, b"0ms"),
        (12, b"12ms"),
        (1000, b"1s"),
        (1500, b"1.5s"),
        (59_999, b"59.999s"),
        (360_000, b"6m0s"),
        (3_600_000, b"1h0m0s"),
        (3_723_004, b"1h2m3.004s"),
    ],
)
def test_duration_is_written_as_go_does(milliseconds, text):
    assert duration(milliseconds) == text
