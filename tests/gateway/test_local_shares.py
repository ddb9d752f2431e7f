"""The part of each limit that one process admits while the store is away: all of them stay in one rate."""

import pytest

from gateway.local_shares import Shares
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit

NOW_MS = 1_800_000_000_000


def rate(capacity=600, per_minute=600, outage="local_share", **fields):
    return Limit("k3", "key", "tokens", "bucket", capacity, per_minute, 1, outage=outage, **fields)


def slots(capacity, outage="local_share"):
    return Limit("k3", "key", "concurrency", "concurrency", capacity, 0, 1, "now", outage=outage)


def take(shares, amount, limit, now_ms=NOW_MS):
    return shares.take((Charge(limit, amount),), now_ms)


def test_a_share_starts_empty_and_fills_at_its_part_of_the_rate():
    shares, limit = Shares(3), rate()
    refused = take(shares, 1, limit)
    assert (refused.admitted, refused.reason, refused.retry_after_ms) == (False, "rate", 300)
    assert not take(shares, 1, limit, NOW_MS + 299).admitted
    assert take(shares, 1, limit, NOW_MS + 300).admitted  # 600 a minute / 3 = one in 300 ms


def test_all_processes_together_stay_within_one_rate():
    limit, admitted = rate(), 0
    for _ in range(4):
        shares = Shares(4)
        take(shares, 1, limit)
        for step in range(1, 601):
            admitted += take(shares, 1, limit, NOW_MS + step * 100).admitted

    assert 590 <= admitted <= 600  # one minute at 600 a minute


def test_a_part_of_the_burst_is_all_that_gathers():
    shares, limit = Shares(3), rate(capacity=30)
    take(shares, 1, limit)
    assert take(shares, 10, limit, NOW_MS + 3_600_000).admitted
    assert not take(shares, 1, limit, NOW_MS + 3_600_000).admitted


def test_what_is_larger_than_a_part_or_may_not_be_shared_is_refused():
    shares = Shares(3)
    budget = Limit("k3", "key", "money", "quota", 100, 0, 1, "day", outage="local_share")
    for amount, limit in ((11, rate(capacity=30)), (1, rate(outage="fail_closed")), (1, budget)):
        with pytest.raises(StoreUnavailable):
            take(shares, amount, limit)


def test_requests_at_once_are_shared_and_come_back():
    shares, limit = Shares(2), slots(4)
    charge = (Charge(limit, 1),)
    assert [shares.take(charge, NOW_MS).admitted for _ in range(3)] == [True, True, False]
    shares.give_back(charge)
    assert shares.take(charge, NOW_MS).admitted


def test_shadow_limits_and_keys_without_limits_pass():
    assert take(Shares(2), 5, rate(shadow=True, outage="fail_closed")).admitted
    assert Shares(2).take((), NOW_MS).admitted
