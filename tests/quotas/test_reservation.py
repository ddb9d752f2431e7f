"""The life of a reservation, and how true amounts find their limits."""

import pytest

from quotas.calendar import LIFETIME
from quotas.errors import ReservationRefused
from quotas.limits import MAX_EXACT, Charge
from quotas.reservation import (
    TABLE,
    State,
    Step,
    after,
    check_amounts,
    check_limits,
    check_periods,
    true_amounts,
)
from tests.support.limits import bucket, quota


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_step_moves_along_the_table_or_not_at_all(state, step):
    assert after(state, step) == TABLE[state].get(step)


@pytest.mark.parametrize("step", Step)
def test_what_has_ended_stays_as_it_is(step):
    for state in (State.SETTLED, State.RELEASED, State.TOMBSTONE):
        assert after(state, step) is None


def test_true_amounts_match_by_level_then_by_dimension_then_stay():
    tenant, key, other = bucket("t1"), bucket("k1"), bucket("k1", "requests")

    charged = (Charge(bucket("k1"), 30), Charge(bucket("p9"), 40))

    assert true_amounts((tenant, key, other), (500, 500, 1), charged) == [30, 30, 1]


def test_windows_of_one_dimension_are_levels_of_their_own():
    minute, day = bucket("t1"), quota("t1")

    charged = (Charge(day, 2, LIFETIME), Charge(minute, 1))

    assert true_amounts((minute, day), (5, 6), charged) == [1, 2]


def test_one_level_named_twice_is_refused():
    check_limits((bucket(), quota()))
    with pytest.raises(ReservationRefused):
        check_limits((bucket(), bucket(capacity=5)))


@pytest.mark.parametrize("amounts", [(1, -1), (MAX_EXACT + 1,)], ids=["negative", "inexact"])
def test_amounts_that_no_script_can_take_exactly_are_refused(amounts):
    check_amounts(())
    check_amounts((0, MAX_EXACT))
    with pytest.raises(ReservationRefused):
        check_amounts(amounts)


def test_quota_without_periods_is_refused():
    check_periods((Charge(bucket(), 1), Charge(quota(), 1, LIFETIME)))
    with pytest.raises(ReservationRefused):
        check_periods((Charge(quota(), 1),))
