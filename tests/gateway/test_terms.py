"""What applies to a principal's requests for one model, and what they are charged."""

import pytest

from gateway.contract.errors import RequestTooLarge
from gateway.snapshot import (
    KeyDoc,
    ModelDoc,
    PlatformDoc,
    Principal,
    ProjectDoc,
    TenantDoc,
    Throughput,
)
from gateway.terms import Calendars, scope_of, terms_of
from quotas.estimate import Plan
from quotas.limits import Limit
from quotas.pricing import Price
from tests.support.limits import bucket

NOW_MS = 1_800_000_000_000
DAY = Limit("t1", "tenant acme", "tokens", "quota", 9000, 0, 1, "day")
BUDGET = Limit("k3", "key a/b/c", "money", "quota", 2_000_000, 0, 1, "month")
REQUESTS = bucket("k3", "requests", capacity=60)
USER = bucket("k3u", "requests", capacity=5, per_minute=5)
PRICE = Price(id=9, version=1, currency="USD", nano={"input": 10**9, "output": 4 * 10**9})


def model(**fields):
    return ModelDoc(**{"id": 7, "name": "llama", "upstream": "llama", "pool_id": 1} | fields)


def principal(tenant=(DAY,), key=(REQUESTS,), **fields):
    return Principal(
        KeyDoc(
            id=3, project_id=2, name="c", path="a/b/c", secrets=(), limits=key,
            model_limits={7: (bucket("k3m7", capacity=500),)}, user_limits=(USER,),
        ),
        ProjectDoc(id=2, tenant_id=1, name="b"),
        TenantDoc(id=1, name="acme", limits=tenant, **fields),
    )  # fmt: skip


def terms(who=None, what=None):
    return terms_of(who or principal(), what or model(), Calendars(), PlatformDoc())


def test_limits_of_the_model_come_with_those_of_every_model():
    assert [limit.scope for limit in terms().limits] == ["t1", "k3", "k3m7"]
    assert [limit.scope for limit in terms(what=model(id=8)).limits] == ["t1", "k3"]


def test_they_are_made_once_and_anew_when_the_model_changes():
    who, what, calendars = principal(), model(), Calendars()
    first = terms_of(who, what, calendars, PlatformDoc())

    assert terms_of(who, what, calendars, PlatformDoc()) is first
    assert terms_of(who, model(), calendars, PlatformDoc()) is not first


def test_amounts_go_to_their_dimensions_and_quotas_get_their_periods():
    charges = terms().charges((1, 30, 70, 100, 1, 0), NOW_MS)

    assert [each.amount for each in charges] == [100, 1, 100]
    assert charges[0].periods is not None
    assert charges[0].periods.this_id == "2027-01-15"
    assert charges[1].periods is None


def test_periods_are_of_the_tenants_time_zone():
    who = principal(time_zone="Pacific/Kiritimati")
    periods = terms(who).charges((1, 0, 0, 0, 1, 0), NOW_MS)[0].periods
    assert periods is not None
    assert periods.begins_ms % 86_400_000 == 36_000_000  # its midnight is at 10:00 UTC
    unknown = terms(principal(time_zone="Atlantis/Here")).charges((1, 0, 0, 0, 1, 0), NOW_MS)
    assert unknown[0].periods is not None


def test_each_end_user_has_limits_of_its_own():
    base = terms()
    ann, bob = base.for_user("aa"), base.for_user("bb")

    assert base.has_users
    assert [limit.scope for limit in ann.limits] == ["t1", "k3", "k3m7", "k3uaa"]
    assert bob.limits[-1].scope == "k3ubb"
    assert base.for_user("aa") is ann
    assert len(ann.charges((1, 0, 0, 0, 1, 0), NOW_MS)) == 4


def test_a_hold_is_the_ceiling_at_the_dearest_price_rounded_up():
    spending = terms(principal(key=(BUDGET,)), model(price=PRICE))

    assert spending.spends
    held = spending.hold_micro(Plan(10, 100, 100, None, prompt_ceiling=50))
    assert 450 <= held <= 451  # 50 x 1 + 100 x 4 micro, and what roundings may add
    assert terms().hold_micro(Plan(10, 100, 100, None)) == 0


def test_a_price_in_another_currency_is_none():
    euros = Price(id=9, version=1, currency="EUR", nano={"input": 1})
    assert terms(what=model(price=euros)).price is None


def test_output_is_cut_to_what_the_tightest_budget_can_ever_grant():
    spending = terms(principal(key=(BUDGET,)), model(price=PRICE))

    tokens = spending.affordable_output(1_000_000, None)
    assert tokens is not None
    assert 249_990 <= tokens <= 250_000  # 2.00 less 1.00 of prompt, at 4 a million
    assert spending.affordable_output(1_000_000, 17) == 17
    assert terms().affordable_output(None, 17) == 17


def test_what_can_never_fit_is_refused_with_the_limit_named():
    with pytest.raises(RequestTooLarge, match=r"600 tokens.*500"):
        terms().check_fits(Plan(100, 500, 500, None))
    terms().check_fits(Plan(100, 400, 400, None))
    spending = terms(principal(key=(BUDGET,)), model(price=PRICE))
    with pytest.raises(RequestTooLarge, match=r"2\.00 USD"):
        spending.check_fits(Plan(10, 400, 400, None, prompt_ceiling=3_000_000))


def test_shadow_limits_refuse_nothing():
    shadow = Limit("k3", "key", "tokens", "bucket", 5, 5, 1, shadow=True)
    who = principal(tenant=(), key=(shadow,))
    terms(who, model(id=8)).check_fits(Plan(100, 500, 500, None))


@pytest.mark.parametrize(
    ("scope", "kind"),
    [
        ("t1", "tenant"),
        ("p2", "project"),
        ("k3", "key"),
        ("k3m7", "key_model"),
        ("t1m7", "tenant_model"),
        ("k3uab01", "end_user"),
    ],
)
def test_a_scope_has_one_word_for_metrics(scope, kind):
    assert scope_of(bucket(scope)) == kind


def test_what_all_tenants_share_is_charged_apart_and_bounds_an_answer():
    everybody = bucket("A", "requests", capacity=5)
    tokens = Limit("M7", "model llama", "tokens", "quota", 400, 0, 1, "day")
    platform = PlatformDoc(
        limits=(everybody,), pool_limits={2: (bucket("G2"),)}, model_limits={7: (tokens,)}
    )
    made = terms_of(principal(), model(), Calendars(), platform)

    assert made.shared == (everybody, tokens)
    assert "A" not in [limit.scope for limit in made.limits]
    charges = made.shared_charges((1, 30, 70, 100, 1, 0), NOW_MS)
    assert [each.amount for each in charges] == [1, 100]
    assert charges[1].periods.this_id == "2027-01-15"
    assert made.tightest_tokens is tokens
    assert made.for_user("ab").shared == made.shared
    assert [scope_of(each) for each in (everybody, bucket("G2"), tokens)] == [
        "platform", "pool", "model",
    ]  # fmt: skip


def sold(spills=False, capacity=3_000):
    limit = bucket("t1m7r5", capacity=capacity, per_minute=capacity)
    return {7: Throughput(limit=limit, spills=spills, from_ms=NOW_MS, until_ms=NOW_MS + 1_000)}


def test_reserved_throughput_is_there_from_its_acceptance_to_its_end():
    held = terms(principal(throughput=sold()))

    assert held.on_throughput(NOW_MS - 1) is None
    assert held.on_throughput(NOW_MS + 1_000) is None
    assert held.on_throughput(NOW_MS) is held.on_throughput(NOW_MS + 999)
    assert terms().on_throughput(NOW_MS) is None
    assert terms(principal(throughput=sold()), model(id=8)).on_throughput(NOW_MS) is None


def test_what_was_paid_for_is_not_held_back_by_the_tenants_tokens_or_money():
    balance = Limit("t1", "tenant acme", "money", "balance", 0, 0, 1, "now")
    at_once = Limit("t1", "tenant acme", "concurrency", "concurrency", 4, 0, 1, "now")
    who = principal((DAY, balance, at_once), (REQUESTS, BUDGET), throughput=sold())
    held = terms(who).on_throughput(NOW_MS)

    assert [(each.scope, each.dimension) for each in held.limits] == [
        ("t1", "concurrency"), ("k3", "requests"), ("k3m7", "tokens"), ("t1m7r5", "tokens"),
    ]  # fmt: skip
    assert (held.reserved, held.spends, terms(who).spends) == (True, False, True)
    assert scope_of(held.limits[-1]) == "throughput"
    assert terms(who).for_user("aa").on_throughput(NOW_MS).limits[-2].scope == "k3uaa"


def test_what_never_fits_reserved_throughput_spills_or_is_refused():
    intent = Plan(0, 5_000, 5_000, None)
    small = {"key": (), "throughput": sold(capacity=100)}
    spilling = terms(principal(**small | {"throughput": sold(True, 100)}), model(id=7))

    assert spilling.on_throughput(NOW_MS).spills
    assert spilling.on_throughput(NOW_MS).tightest_tokens.scope == "k3m7"
    held = terms(principal(**small)).on_throughput(NOW_MS)
    assert held.tightest_tokens.scope == "t1m7r5"
    with pytest.raises(RequestTooLarge):
        held.check_fits(intent)
