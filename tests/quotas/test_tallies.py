"""Quotas and balances by themselves: periods that turn, used and held apart, money that is seeded."""

import pytest

from quotas.buckets import NEVER
from quotas.calendar import LIFETIME, Periods
from quotas.tallies import GUESS_MS, Purse, Tally, period_now
from tests.support.limits import balance, quota

DAYS = Periods("d1", 0, 100, "d2", 200)
LATER = Periods("d2", 100, 200, "d3", 300)


@pytest.mark.parametrize(
    ("now_ms", "found"),
    [(-1, ("", 0)), (0, ("d1", 100)), (99, ("d1", 100)), (100, ("d2", 200)), (200, ("", 0))],
)
def test_stores_time_chooses_the_period(now_ms, found):
    assert period_now(DAYS, now_ms) == found


def test_period_starts_at_nothing_and_the_one_before_is_still_known():
    tally = Tally()
    tally.begin("d1").used = 7
    tally.begin("d2").held = 3

    assert (tally.find("d1").used, tally.find("d2").held) == (7, 3)
    assert tally.begin("d1") is tally.before  # a clock that stepped back over the turn
    tally.begin("d3")
    assert tally.find("d1") is None


@pytest.mark.parametrize(
    ("used", "held", "amount", "left", "wait", "reason"),
    [
        (0, 0, 1000, 1000, 0, ""),
        (400, 0, 600, 600, 0, ""),
        (400, 0, 601, 600, 50, "quota"),
        (400, 300, 500, 300, GUESS_MS, "quota_held"),
        (0, 0, 1001, 1000, NEVER, "never"),
        (1200, 0, 1, -200, 50, "quota"),
        (1200, 0, 0, -200, 0, ""),
    ],
)
def test_quota_says_how_long_and_why(used, held, amount, left, wait, reason):
    tally = Tally()
    slot = tally.begin("d1")
    slot.used, slot.held = used, held

    level, waits, why = tally.look(quota(), amount, DAYS, 50)

    assert (level.remaining, level.reset_ms, waits, why) == (left, 50, wait, reason)


def test_store_outside_both_periods_can_say_nothing():
    assert Tally().look(quota(), 1, LATER, 50)[1:] == (GUESS_MS, "skewed")


def test_budget_for_life_that_is_spent_does_not_come_back():
    tally = Tally()
    tally.seeded = True
    tally.begin("life").used = 1000
    life = quota(dimension="money", window="lifetime")

    assert tally.look(life, 1, LIFETIME, 50)[1:] == (NEVER, "balance_spent")


def test_budget_is_refused_until_it_is_seeded():
    tally = Tally()
    budget = quota(dimension="money")

    assert tally.look(budget, 1, DAYS, 50)[1:] == (GUESS_MS, "unbuilt")
    assert tally.look(budget, 0, DAYS, 50)[1:] == (0, "")
    tally.seeded = True
    tally.begin("d1").held = 600
    assert tally.look(budget, 500, DAYS, 50)[1:] == (GUESS_MS, "balance_held")
    tally.begin("d1").used = 600
    assert tally.look(budget, 500, DAYS, 50)[1:] == (50, "balance_spent")


@pytest.mark.parametrize(
    ("level", "held", "credit", "amount", "wait", "reason"),
    [
        (100, 0, 0, 100, 0, ""),
        (100, 0, 0, 101, NEVER, "balance_spent"),
        (100, 60, 0, 50, GUESS_MS, "balance_held"),
        (-20, 0, 50, 30, 0, ""),
        (-20, 0, 50, 31, NEVER, "balance_spent"),
        (-20, 0, 0, 0, 0, ""),
    ],
)
def test_balance_tells_spent_from_held(level, held, credit, amount, wait, reason):
    purse = Purse()
    assert purse.look(balance(credit=credit), 1)[1:] == (GUESS_MS, "unbuilt")
    purse.level, purse.held, purse.seeded = level, held, True

    seen, waits, why = purse.look(balance(credit=credit), amount)

    assert seen.remaining == level + credit - held
    assert (waits, why) == (wait, reason)
