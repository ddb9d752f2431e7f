"""A key's endings that billed nothing: so many at once, so many a minute, nobody else's concern."""

import pytest

from quotas import unbilled
from quotas.unbilled import UnbilledEndings


def test_a_key_has_a_minutes_worth_at_once_and_then_waits_for_one_to_flow_back():
    endings = UnbilledEndings(60)
    for _ in range(60):
        assert endings.wait_ms(7, 100.0) == 0
        endings.note(7, 100.0)

    assert endings.wait_ms(7, 100.0) == 1000
    assert endings.wait_ms(7, 100.4) == 600
    assert endings.wait_ms(7, 101.0) == 0
    assert endings.wait_ms(8, 100.0) == 0


def test_what_was_in_flight_is_owed():
    endings = UnbilledEndings(60)
    for _ in range(90):
        endings.note(7, 0.0)

    assert endings.wait_ms(7, 0.0) == 31_000
    assert endings.wait_ms(7, 31.0) == 0


def test_a_bucket_never_holds_more_than_a_minutes_worth():
    endings = UnbilledEndings(60)
    endings.note(7, 0.0)
    for _ in range(60):
        endings.note(7, 100_000.0)

    assert endings.wait_ms(7, 100_000.0) == 1000


@pytest.mark.parametrize("seconds", [60, 600])
def test_over_any_time_no_more_than_burst_and_rate_are_had(seconds):
    endings = UnbilledEndings(30)
    had = 0
    for tick in range(seconds * 10):
        if endings.wait_ms(7, tick / 10) == 0:
            endings.note(7, tick / 10)
            had += 1

    assert 30 + 30 * seconds / 60 - 1 <= had <= 30 + 30 * seconds / 60


def test_zero_is_no_limit():
    endings = UnbilledEndings(0)
    for _ in range(1000):
        endings.note(7, 0.0)

    assert endings.wait_ms(7, 0.0) == 0


def test_keys_with_full_buckets_are_forgotten_when_there_are_many(monkeypatch):
    monkeypatch.setattr(unbilled, "KEYS_MAX", 3)
    endings = UnbilledEndings(60)
    for key_id in (1, 2):
        endings.note(key_id, 0.0)
    for _ in range(61):
        endings.note(3, 60.0)
    endings.note(4, 60.0)

    assert set(endings._levels) == {3, 4}
    assert endings.wait_ms(3, 60.0) == 2000
