"""Months: where a moment belongs, and where it goes when that month is closed."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.months import (
    bounds_ms,
    format_period,
    next_period,
    open_period,
    parse_period,
    period_of,
)

moments = st.integers(0, 4_000_000_000_000)


@given(moments)
def test_a_moment_is_within_the_bounds_of_its_period_and_of_no_other(at_ms):
    start_ms, end_ms = bounds_ms(period_of(at_ms))

    assert start_ms <= at_ms < end_ms
    assert period_of(end_ms) == next_period(period_of(at_ms))
    assert period_of(start_ms - 1) != period_of(at_ms)


@given(moments, moments)
def test_nothing_is_ever_booked_in_a_closed_period(at_ms, closed_ms):
    closed = period_of(closed_ms)
    period = open_period(at_ms, closed)

    assert period > closed
    assert period in (period_of(at_ms), next_period(closed))


def test_what_comes_on_time_stays_in_its_month():
    at_ms = int(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp() * 1000) + 999

    assert open_period(at_ms, 202610) == 202611
    assert open_period(at_ms, 202611) == 202612


@given(moments)
def test_a_period_reads_back_as_printed(at_ms):
    period = period_of(at_ms)

    assert parse_period(format_period(period)) == period == parse_period(str(period))


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-00", "26-11", "2026-11-01", "\u0662\u0660\u0662\u066611"]
)
def test_what_is_no_month_is_refused(text):
    with pytest.raises(ValueError, match="expected a month"):
        parse_period(text)
