"""Credit without the store: a process's part of it, once, and given again when the store has seen it."""

from quotas.limits import Charge, Limit
from quotas.offline import OfflineCredit, money_of
from tests.support.limits import balance, bucket

BOTH = (("t1", 1_000), ("p2", 300))


def test_no_credit_has_no_room():
    assert not OfflineCredit().fits((), 1, 1)
    assert not OfflineCredit().fits((("t1", 0),), 1, 1)


def test_all_processes_together_stay_within_it():
    spent = 0
    for _ in range(3):
        credit = OfflineCredit()
        while credit.fits(BOTH[:1], 7, 3):
            credit.move(BOTH[:1], 7)
            spent += 7
    assert 1_000 - 3 * 7 < spent <= 1_000


def test_the_projects_and_the_tenants_bound_it_both():
    credit = OfflineCredit()
    assert credit.fits(BOTH, 300, 1)
    assert not credit.fits(BOTH, 301, 1)
    credit.move(BOTH, 300)
    assert credit.fits(BOTH[:1], 700, 1)  # another project's
    assert not credit.fits(BOTH[:1], 701, 1)


def test_what_a_request_did_not_cost_is_room_again_and_more_than_all_is_not():
    credit = OfflineCredit()
    credit.move(BOTH, 300)
    credit.move(BOTH, -250)
    assert credit.fits(BOTH, 250, 1)
    credit.move(BOTH, -900)
    assert credit.fits(BOTH, 300, 1)
    assert not credit.fits(BOTH, 301, 1)


def test_it_is_given_again_once_the_store_has_admitted_their_money():
    credit = OfflineCredit()
    credit.move(BOTH, 300)
    credit.renew(BOTH)
    assert credit.spent == {}
    assert credit.fits(BOTH, 300, 1)


def test_a_requests_money_is_what_each_limit_of_money_holds():
    shadow = Limit("k3", "key", "money", "quota", 9, 0, 1, "day", shadow=True)
    held = (Charge(bucket(), 900), Charge(balance(), 70), Charge(shadow, 80))
    assert money_of(held) == 70
    assert money_of(()) == 0
