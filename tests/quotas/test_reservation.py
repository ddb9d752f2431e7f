"""The life of a reservation, and how true amounts find their limits."""

import pytest

from quotas.errors import ReservationRefused
from quotas.limits import Charge
from quotas.reservation import TABLE, Reservation, State, Step, check_charges, true_amounts
from tests.support.limits import bucket


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_step_moves_along_the_table_or_not_at_all(state, step):
    reservation = Reservation(state)

    before = reservation.move(step)

    assert reservation.state == TABLE[state].get(step, state)
    assert before == (state if step in TABLE[state] else None)


def test_true_amounts_match_by_scope_and_dimension_then_by_dimension_then_stay():
    tenant, key, other = bucket("t1"), bucket("k1"), bucket("k1", "requests")
    stored = (Charge(tenant, 500), Charge(key, 500), Charge(other, 1))

    charged = (Charge(bucket("k1"), 30), Charge(bucket("p9"), 40))

    assert true_amounts(stored, charged) == [30, 30, 1]


def test_same_limits_in_another_order_are_matched_by_name():
    stored = (Charge(bucket("t1"), 5), Charge(bucket("k1"), 6))

    assert true_amounts(stored, (Charge(bucket("k1"), 2), Charge(bucket("t1"), 1))) == [1, 2]


@pytest.mark.parametrize(
    "charges",
    [(Charge(bucket(), 1), Charge(bucket(capacity=5), 1)), (Charge(bucket(), -1),)],
    ids=["limit named twice", "negative amount"],
)
def test_charges_that_no_single_step_can_take_are_refused(charges):
    with pytest.raises(ReservationRefused):
        check_charges(charges)
