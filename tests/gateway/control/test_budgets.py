"""Tallies of budgets: which records count, and which thresholds they pass."""

from gateway.control.budgets import Record, Tallies, budgets_in
from gateway.snapshot import KeyDoc, ProjectDoc, Snapshot, TenantDoc
from gateway.terms import Calendars
from quotas.limits import Limit

NOW_MS = 1_800_000_000_000  # 2027-01-15T08:00Z


def money(scope, window="month", capacity=10_000_000, **more):
    return Limit(scope, f"scope {scope}", "money", "quota", capacity, 0, 1, window, **more)


def snapshot(*limits, model_limits=None, time_zone="UTC"):
    made = Snapshot()
    made.tenants[3] = TenantDoc(
        id=3, name="acme", limits=limits, model_limits=model_limits or {}, time_zone=time_zone
    )
    made.projects[4] = ProjectDoc(id=4, tenant_id=3, name="p", limits=(money("p4"),))
    made.keys[5] = KeyDoc(
        id=5, project_id=4, name="k", path="acme/p/k", secrets=(), limits=(money("k5"),)
    )
    return made


def spent(nano, *, model_id=6, currency="USD", at_ms=NOW_MS, key_id=5):
    owners = {"tenant_id": 3, "project_id": 4, "key_id": key_id}
    return Record(owners, model_id, currency, at_ms, nano)


def tallies(of, now_ms=NOW_MS):
    made = Tallies()
    for budget in made.follow(budgets_in(of, Calendars(), now_ms)):
        made.spent_nano[budget.name] = 0
    return made


def test_only_budgets_of_money_whom_the_ledger_knows_are_tallied():
    tokens = Limit("t3", "tenant acme", "tokens", "quota", 10, 0, 1, "day")
    balance = Limit("t3", "tenant acme", "money", "balance", 0, 0, 1, "now")
    per_user = money("k5u")
    made = tallies(snapshot(tokens, balance, per_user, money("t3", "day")))

    assert sorted(made.spent_nano) == ["k5:month:2027-01", "p4:month:2027-01", "t3:day:2027-01-15"]


def test_records_count_for_their_owners_model_currency_and_period():
    of_model = {6: (money("t3m6"),)}
    made = tallies(snapshot(model_limits=of_model))
    made.add(spent(1))
    made.add(spent(10, model_id=7))
    made.add(spent(100, key_id=9))
    made.add(spent(1_000, currency="EUR"))
    made.add(spent(10_000, at_ms=NOW_MS - 31 * 86_400_000))

    assert made.spent_nano == {
        "t3m6:month:2027-01": 101,
        "p4:month:2027-01": 111,
        "k5:month:2027-01": 11,
    }


def test_a_threshold_is_passed_at_its_very_nano_and_said_once():
    made = tallies(snapshot())
    made.add(spent(4_999_999_999))
    assert not list(made.passed(NOW_MS))
    made.add(spent(1))
    assert [each.data["percent"] for each in made.passed(NOW_MS)] == [50, 50]
    assert not list(made.passed(NOW_MS))
    made.add(spent(5_000_000_000, key_id=9))
    passed = [(each.data["scope"], each.data["percent"]) for each in made.passed(NOW_MS)]
    assert passed == [("scope p4", 80), ("scope p4", 100)]


def test_a_new_period_begins_at_zero_in_the_tenants_zone():
    of = snapshot(money("t3", "day"), time_zone="Asia/Tokyo")
    made = tallies(of)
    assert "t3:day:2027-01-15" in made.spent_nano
    evening_ms = NOW_MS + 8 * 3_600_000  # 01:00 of the next day in Tokyo

    new = made.follow(budgets_in(of, Calendars(), evening_ms))

    assert [budget.name for budget in new] == ["t3:day:2027-01-16"]
    assert "t3:day:2027-01-15" not in made.spent_nano
