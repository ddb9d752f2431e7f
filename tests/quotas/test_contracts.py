"""Commitments and reserved throughput: sums that a contract makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.contracts import HOUR_MS, ThroughputTerm, overage, report, shortfall, spill
from quotas.months import bounds_ms

NOVEMBER, _ = bounds_ms(202611)


def term(**fields: int) -> ThroughputTerm:
    values = {"accepted_ms": NOVEMBER, "until_ms": NOVEMBER + 10 * 24 * HOUR_MS} | fields
    return ThroughputTerm(
        id=1,
        tenant_id=1,
        model_id=1,
        tokens_per_minute=1_000,
        hour_nano=2_000_000_000,
        currency="USD",
        overflow="spill",
        **values,
    )


@given(st.lists(st.integers(0, 10**9), max_size=20), st.integers(0, 10**10))
def test_a_commitment_is_used_or_trued_up_and_never_both(costs, commitment):
    used = above = 0
    for cost in costs:
        inside, over = overage(cost, commitment - used, 1_000_000)
        assert inside + over == cost
        used += inside
        above += over

    assert used + shortfall(commitment, used) == commitment
    assert above == 0 or shortfall(commitment, used) == 0


def test_above_the_commitment_the_overage_price_holds():
    assert overage(100, 40, 1_250_000) == (40, 75)


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(0, 10**6))
def test_what_a_term_covers_is_not_paid_again(payable, tokens, covered):
    owed = spill(payable, tokens, covered)

    assert 0 <= owed <= payable
    assert owed == payable if covered == 0 else True
    assert owed == 0 if covered >= tokens else True


@pytest.mark.parametrize("used", [0, 1, 5_000_000])
def test_reserved_hours_cost_the_same_used_or_not(used):
    found = report(term(), 202611, used)

    assert found.charge_nano == 240 * 2_000_000_000
    assert found.sold_tokens == 10 * 24 * 60 * 1_000
    assert found.idle_tokens == found.sold_tokens - used


def test_hours_count_from_acceptance_and_within_the_period_only():
    last_day = bounds_ms(202611)[1] - 24 * HOUR_MS
    over_new_year = term(accepted_ms=last_day, until_ms=last_day + 36 * HOUR_MS)

    assert report(over_new_year, 202611, 0).milliseconds == 24 * HOUR_MS
    assert report(over_new_year, 202612, 0).milliseconds == 12 * HOUR_MS
    assert report(over_new_year, 202610, 0).charge_nano == 0
    assert report(over_new_year, 202701, 0).charge_nano == 0


def test_what_is_only_asked_for_costs_nothing_and_holds_nothing():
    asked = term(accepted_ms=0)

    assert report(asked, 202611, 0).charge_nano == 0
    assert not asked.holds(NOVEMBER)


def test_utilisation_is_tokens_used_of_tokens_sold():
    sold = report(term(), 202611, 0).sold_tokens

    assert report(term(), 202611, sold // 4).used_ppm == 250_000
