"""The x-ratelimit headers: which limit binds, and Go's durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.ratelimits import duration, families_of, rate_headers, rate_lines
from quotas.limits import Level, Limit


def limit(dimension: str, capacity: int, **fields: object) -> Limit:
    return Limit("k1", "key a/b/c", dimension, "bucket", capacity, capacity, 1, **fields)


def test_limit_with_least_left_is_shown_in_each_family():
    limits = (limit("requests", 600), limit("requests", 60), limit("tokens", 1000))
    levels = (Level(10, 500), Level(5, 2000), Level(-3, 60_000))

    assert dict(rate_headers(families_of(limits), levels)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"5",
        b"x-ratelimit-reset-requests": b"2s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_every_kind_of_tokens_and_every_window_is_one_family():
    limits = (
        limit("tokens", 1000),
        limit("output_tokens", 300),
        Limit("t1", "tenant a", "input_tokens", "quota", 900, 0, 1, "day"),
    )
    levels = (Level(500, 1), Level(200, 2), Level(100, 3))

    headers = dict(rate_headers(families_of(limits), levels))
    assert headers[b"x-ratelimit-limit-tokens"] == b"900"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"100"


def test_shadow_limits_money_and_concurrency_are_not_shown():
    limits = (
        limit("requests", 5, shadow=True),
        Limit("t1", "tenant a", "money", "quota", 900, 0, 1, "day"),
        Limit("t1", "tenant a", "concurrency", "concurrency", 2, 0, 1, "now"),
    )
    assert families_of(limits) == ()


def test_no_limits_no_headers():
    assert rate_headers((), ()) == []


LEVELS = st.builds(Level, st.integers(-3, 3) | st.integers(), st.integers(-5, 10**8))


@given(st.lists(st.sampled_from(("requests", "tokens", "output_tokens", "money"))), st.data())
def test_lines_say_what_the_pairs_say(dimensions, data):
    families = families_of([limit(name, n) for n, name in enumerate(dimensions, 1)])
    levels = data.draw(st.tuples(*[LEVELS for _ in dimensions]))

    pairs = rate_headers(families, levels)
    assert rate_lines(families, levels) == b"".join(b"%b: %b\r\n" % pair for pair in pairs)


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
