"""Plans: found again by the first and the last limit, and made anew where any of them differs."""

import pytest

from quotas.errors import ReservationRefused
from quotas.limits import Charge
from quotas.store import plans
from quotas.store.plans import Tag
from tests.support.limits import bucket, quota, slots


def listed(*limits):
    return [Charge(limit, 0) for limit in limits]


def test_same_limits_have_one_plan_and_share_their_cells_with_others():
    tag, tenant, key, other = Tag(), bucket("t1"), bucket("k1"), bucket("k2")
    first, second = tag.plan(listed(tenant, key)), tag.plan(listed(tenant, other))

    assert tag.plan(listed(tenant, key)) is first
    assert tag.known_plan(listed(tenant, key)) is first
    assert first.cells[0] is second.cells[0]


def test_list_that_differs_in_its_middle_has_a_plan_of_its_own():
    tag, tenant, key = Tag(), bucket("t1"), bucket("k1")
    first = tag.plan(listed(tenant, bucket("p1"), key))
    second = tag.plan(listed(tenant, bucket("p2"), key))

    assert [cell.limit.scope for cell in first.cells] == ["t1", "p1", "k1"]
    assert [cell.limit.scope for cell in second.cells] == ["t1", "p2", "k1"]


def test_only_enforced_buckets_and_holds_are_plain():
    assert Tag().plan(listed(bucket(), slots())).plain
    assert not Tag().plan(listed(bucket(), quota())).plain
    tag, limits = Tag(), listed(bucket(), quota())
    tag.plan(limits)
    assert tag.known_plan(limits) is None
    assert tag.known_plan([]) is None


def test_plain_plan_is_forgotten_where_a_list_like_it_is_plain_no_more():
    tag, tenant, key = Tag(), bucket("t1"), bucket("k1")
    tag.plan(listed(tenant, bucket("p1"), key))
    tag.plan(listed(tenant, quota("p1"), key))

    assert tag.known_plan(listed(tenant, quota("p1"), key)) is None


def test_level_named_twice_is_refused():
    with pytest.raises(ReservationRefused):
        Tag().plan(listed(bucket("t1"), bucket("t1")))


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(plans, "PLANS_KEPT", 3)
    tag = Tag()
    for n in range(10):
        tag.plan(listed(bucket(f"k{n}")))

    assert len(tag._plans) <= 3
