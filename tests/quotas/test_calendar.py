"""Calendar periods: ids, bounds, zones whose clocks change, and which one a store's time is in."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.calendar import FOREVER_MS, SKEW_MS, covering, periods_at, stale_ms


def ms(text, zone="UTC"):
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "at", "this", "following"),
    [
        ("day", "2026-11-25T12:00:00", "2026-11-25", "2026-11-26"),
        ("day", "2026-12-31T23:00:00", "2026-12-31", "2027-01-01"),
        ("week", "2027-01-02T00:10:00", "2026-W53", "2027-W01"),
        ("week", "2026-11-23T00:10:00", "2026-W48", "2026-W49"),
        ("month", "2024-02-29T12:00:00", "2024-02", "2024-03"),
        ("month", "2026-12-31T12:00:00", "2026-12", "2027-01"),
    ],
)
def test_period_is_named_by_the_civil_calendar(window, at, this, following):
    periods = periods_at(window, ms(at))

    assert (periods.this_id, periods.next_id) == (this, following)


def test_first_period_is_the_one_before_within_the_clocks_skew():
    turn = ms("2026-11-26T00:00:00")

    assert periods_at("day", turn + SKEW_MS - 1).this_id == "2026-11-25"
    assert periods_at("day", turn + SKEW_MS).this_id == "2026-11-26"
    assert stale_ms(periods_at("day", turn)) == turn + SKEW_MS


@pytest.mark.parametrize(
    ("zone", "at", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00", 25),
        ("America/Sao_Paulo", "2018-11-04T12:00:00", 23),  # its clocks skipped midnight
        ("Asia/Kolkata", "2026-03-29T12:00:00", 24),
    ],
)
def test_day_is_as_long_as_its_zone_makes_it(zone, at, hours):
    periods = periods_at("day", ms(at, zone), ZoneInfo(zone))

    assert periods.ends_ms - periods.begins_ms == hours * 3_600_000
    assert periods.this_id == at[:10]


@given(
    st.sampled_from(["day", "week", "month"]),
    st.integers(946_684_800_000, 4_102_444_800_000),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Kathmandu"]),
)
def test_two_adjoining_periods_cover_the_store_whatever_the_skew(window, unix_ms, zone):
    periods = periods_at(window, unix_ms, ZoneInfo(zone))

    assert periods.begins_ms < periods.ends_ms < periods.next_ends_ms
    assert covering(periods, unix_ms - SKEW_MS) == 0
    assert covering(periods, unix_ms) in (0, 1)
    assert covering(periods, unix_ms + SKEW_MS) in (0, 1)
    assert periods_at(window, periods.ends_ms + SKEW_MS, ZoneInfo(zone)).this_id == periods.next_id


def test_day_that_a_zone_left_out_is_no_period():
    apia = ZoneInfo("Pacific/Apia")
    periods = periods_at("day", ms("2011-12-29T12:00:00", "Pacific/Apia"), apia)

    assert (periods.this_id, periods.next_id) == ("2011-12-29", "2011-12-31")
    assert periods.ends_ms == ms("2011-12-31T00:00:00", "Pacific/Apia")


def test_time_outside_both_periods_is_covered_by_neither():
    periods = periods_at("day", ms("2026-11-25T12:00:00"), UTC)

    assert covering(periods, periods.begins_ms - 1) == -1
    assert covering(periods, periods.ends_ms - 1) == 0
    assert covering(periods, periods.next_ends_ms - 1) == 1
    assert covering(periods, periods.next_ends_ms) == -1


def test_lifetime_has_one_period():
    periods = periods_at("lifetime", ms("2026-11-25T12:00:00"))

    assert covering(periods, ms("2200-01-01T00:00:00")) == 0
    assert periods.ends_ms == FOREVER_MS
