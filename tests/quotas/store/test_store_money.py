"""Quotas, budgets, balances, shadow limits and inspection, over both stores."""

import msgspec
import pytest

from quotas.buckets import NEVER
from quotas.calendar import LIFETIME
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Gauge
from quotas.ports import Seed
from tests.support.limits import balance, bucket, left, quota, settlement, slots

TENANT, DAY, PURSE = bucket("t1"), quota("t1"), balance("t1")
BUDGET = quota("k1", "money", capacity=500, window="month")


async def gauge(rig, charge):
    return (await rig.store.inspect(rig.tag, (charge,))).gauges[0]


async def test_several_windows_of_one_dimension_are_charged_at_once(rig):
    days, month = rig.periods(), quota("t1", capacity=5000, window="month")

    verdict = await rig.reserve(
        Charge(TENANT, 100), Charge(DAY, 100, days), Charge(month, 100, LIFETIME)
    )

    assert left(verdict.levels) == [900, 900, 4900]
    assert 0 < verdict.levels[1].reset_ms <= 60_000


async def test_charges_of_one_scope_apart_come_back_in_their_order(rig):
    days = rig.periods()
    charges = (
        Charge(TENANT, 1),
        Charge(slots("k1"), 1),
        Charge(DAY, 2, days),
        Charge(BUDGET, 0, days),
    )

    verdict = await rig.reserve(*charges, reservation_id="a")

    assert left(verdict.levels) == [999, 1, 998, 0]
    refused = await rig.reserve(Charge(TENANT, 1), Charge(slots("k1"), 2), Charge(DAY, 1, days))
    assert (refused.binding, refused.reason) == (1, "concurrency")


async def test_quota_is_refused_to_the_end_of_its_period(rig):
    days = rig.periods(80)
    first = await rig.reserve(Charge(DAY, 700, days), reservation_id="a")
    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(DAY, 600, days)))
    await rig.settled()

    refused = await rig.reserve(Charge(DAY, 500, days))

    assert (refused.admitted, refused.reason) == (False, "quota")
    assert 0 < refused.retry_after_ms <= 80
    await rig.wait(refused.retry_after_ms)
    assert (await rig.reserve(Charge(DAY, 500, days))).admitted


async def test_settle_after_the_turn_counts_in_the_period_that_was_charged(rig):
    days = rig.periods(50)
    first = await rig.reserve(Charge(DAY, 700, days), reservation_id="a")
    await rig.wait(60)
    assert (await rig.reserve(Charge(DAY, 1000, days), reservation_id="b")).admitted

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(DAY, 100, days)))
    await rig.settled()

    assert await gauge(rig, Charge(DAY, 0, days)) == Gauge(0, 1000)


async def test_quota_that_others_only_hold_says_so(rig):
    days = rig.periods()
    await rig.reserve(Charge(DAY, 700, days))

    refused = await rig.reserve(Charge(DAY, 500, days))
    never = await rig.reserve(Charge(DAY, 1001, days))

    assert (refused.reason, refused.retry_after_ms) == ("quota_held", 1000)
    assert (never.reason, never.retry_after_ms) == ("never", NEVER)


async def test_store_outside_both_periods_refuses(rig):
    days = rig.periods()
    past = msgspec.structs.replace(days, begins_ms=0, ends_ms=1, next_ends_ms=2)

    refused = await rig.reserve(Charge(DAY, 1, past))

    assert (refused.admitted, refused.reason) == (False, "skewed")
    with pytest.raises(ReservationRefused):
        await rig.reserve(Charge(DAY, 1))


async def test_change_of_a_quota_keeps_what_was_used(rig):
    days = rig.periods()
    first = await rig.reserve(Charge(DAY, 700, days), reservation_id="a")
    larger = quota("t1", capacity=5000)

    verdict = await rig.reserve(Charge(larger, 0, days))
    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(DAY, 300, days)))
    await rig.settled()

    assert left(verdict.levels) == [4300]
    assert await gauge(rig, Charge(larger, 0, days)) == Gauge(300)


async def test_money_is_refused_until_it_is_seeded(rig):
    days = rig.periods()
    for charge in (Charge(PURSE, 1), Charge(BUDGET, 1, days)):
        refused = await rig.reserve(Charge(TENANT, 5), charge)
        assert (refused.binding, refused.reason, refused.retry_after_ms) == (1, "unbuilt", 1000)
        assert (await gauge(rig, charge)).balance is None

    await rig.seeded(Seed(PURSE, 900), Seed(BUDGET, 100, "p1"))

    verdict = await rig.reserve(Charge(TENANT, 5), Charge(PURSE, 100), Charge(BUDGET, 100, days))
    assert left(verdict.levels) == [995, 800, 300]


async def test_seed_of_another_epoch_does_nothing(rig):
    await rig.store.epoch(rig.tag)

    assert not await rig.store.seed(rig.tag, "another", (Seed(PURSE, 900),))
    assert (await rig.reserve(Charge(PURSE, 1))).reason == "unbuilt"


async def test_second_seed_of_an_epoch_changes_nothing(rig):
    await rig.seeded(Seed(PURSE, 900))
    await rig.reserve(Charge(PURSE, 300))

    await rig.seeded(Seed(PURSE, 5000))

    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 300, 900)


async def test_balance_spent_is_told_from_balance_held(rig):
    await rig.seeded(Seed(PURSE, 1000))
    first = await rig.reserve(Charge(PURSE, 700), reservation_id="a")

    held = await rig.reserve(Charge(PURSE, 500))
    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(PURSE, 600)))
    await rig.settled()
    spent = await rig.reserve(Charge(PURSE, 500))

    assert (held.reason, held.retry_after_ms) == ("balance_held", 1000)
    assert (spent.reason, spent.retry_after_ms) == ("balance_spent", NEVER)
    assert (await rig.reserve(Charge(PURSE, 400))).admitted
    assert left((await rig.reserve(Charge(balance(credit=50), 50))).levels) == [0]


async def test_expired_hold_stays_held_and_a_late_settle_counts_once(rig):
    await rig.seeded(Seed(PURSE, 1000))
    first = await rig.reserve(Charge(PURSE, 700), reservation_id="a")
    rig.store.expire(rig.tag, "a")
    await rig.settled()
    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 700, 1000)

    for _ in range(2):
        rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(PURSE, 100)))
        rig.store.release(rig.tag, "a")
    await rig.settled()

    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 0, 900)


async def test_adjustment_moves_a_seeded_balance_once(rig):
    epoch = await rig.store.epoch(rig.tag)
    assert not await rig.store.adjust(rig.tag, epoch, "top-up 1", PURSE, 500)
    await rig.seeded(Seed(PURSE, 1000), counted=["top-up 2"])

    for _ in range(2):
        assert await rig.store.adjust(rig.tag, epoch, "top-up 1", PURSE, 500)
        assert await rig.store.adjust(rig.tag, epoch, "top-up 2", PURSE, 500)
    assert not await rig.store.adjust(rig.tag, "another", "top-up 3", PURSE, 500)

    assert (await gauge(rig, Charge(PURSE, 0))).balance == 1500


async def test_open_reservation_is_held_again_once_and_settles_exactly(rig):
    days = rig.periods()
    await rig.seeded(Seed(PURSE, 1000))
    charges = (Charge(TENANT, 100), Charge(PURSE, 300), Charge(slots(), 1), Charge(DAY, 100, days))
    await rig.reserve(*charges, reservation_id="a")
    await rig.lose_everything()
    epoch = await rig.store.epoch(rig.tag)

    assert not await rig.store.rehold(rig.tag, "a", "another", charges, 60)
    for _ in range(2):
        assert await rig.store.rehold(rig.tag, "a", epoch, charges, 60)
    await rig.seeded(Seed(PURSE, 1000))
    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 300, 1000)
    assert await rig.levels(TENANT, slots()) == [900, 1]

    true = (Charge(TENANT, 40), Charge(PURSE, 120), Charge(slots(), 0), Charge(DAY, 40, days))
    for _ in range(2):
        rig.store.settle(settlement(rig.tag, "a", "the epoch before", *true))
    await rig.settled()

    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 0, 880)
    assert await gauge(rig, Charge(DAY, 0, days)) == Gauge(40)
    assert await rig.levels(TENANT, slots()) == [960, 2]
    assert not await rig.store.rehold(rig.tag, "a", epoch, charges, 60)


async def test_settle_of_another_epoch_takes_money_only_where_sql_has_not_counted_it(rig):
    true = (Charge(TENANT, 40), Charge(PURSE, 120))
    rig.store.settle(settlement(rig.tag, "early", "before", *true))  # shipped before the seed
    await rig.settled()
    await rig.seeded(Seed(PURSE, 1000), counted=["counted"])

    for _ in range(2):
        rig.store.settle(settlement(rig.tag, "counted", "before", *true))
        rig.store.settle(settlement(rig.tag, "late", "before", *true))
    await rig.settled()

    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 0, 880)
    assert await rig.levels(TENANT) == [880]


async def test_seed_counts_nothing_twice_of_what_was_settled_before_it(rig):
    epoch = await rig.store.epoch(rig.tag)
    days = rig.periods()
    charges = (Charge(TENANT, 100), Charge(PURSE, 300), Charge(BUDGET, 300, days))
    true = (Charge(TENANT, 40), Charge(PURSE, 120), Charge(BUDGET, 120, days))
    for name in ("shipped", "not shipped", "open"):
        assert await rig.store.rehold(rig.tag, name, epoch, charges, 60)
    for name in ("shipped", "not shipped"):
        rig.store.settle(settlement(rig.tag, name, epoch, *true))
    await rig.settled()

    # SQL has the record of the first, and of one whose settle is on its way.
    await rig.seeded(Seed(PURSE, 760), Seed(BUDGET, 240, "p1"), counted=["shipped", "open"])
    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 0, 640)
    assert await gauge(rig, Charge(BUDGET, 0, days)) == Gauge(360)
    rig.store.settle(settlement(rig.tag, "open", epoch, *true))
    await rig.settled()

    assert await gauge(rig, Charge(PURSE, 0)) == Gauge(0, 0, 640)
    assert await gauge(rig, Charge(BUDGET, 0, days)) == Gauge(360)
    assert await rig.levels(TENANT) == [880]


async def test_lost_money_is_refused_again(rig):
    await rig.seeded(Seed(PURSE, 1000))
    await rig.lose_everything()

    assert (await rig.reserve(Charge(PURSE, 1))).reason == "unbuilt"


async def test_shadow_limit_refuses_nobody_and_is_charged_as_if_it_had(rig):
    days = rig.periods()
    shadow = quota("k1", capacity=100, shadow=True)
    first = await rig.reserve(Charge(TENANT, 80), Charge(shadow, 80, days), reservation_id="a")

    second = await rig.reserve(Charge(TENANT, 80), Charge(shadow, 80, days), reservation_id="b")
    for name in "ab":
        rig.store.settle(
            settlement(rig.tag, name, first.epoch, Charge(TENANT, 50), Charge(shadow, 50, days))
        )
    await rig.settled()

    assert (first.shadowed, second.admitted, second.shadowed) == ((), True, (1,))
    assert await gauge(rig, Charge(shadow, 0, days)) == Gauge(50)
    assert await rig.levels(TENANT) == [900]


async def test_what_was_not_reserved_is_charged_when_it_was_used(rig):
    days = rig.periods()
    first = await rig.reserve(Charge(TENANT, 0), Charge(DAY, 0, days), reservation_id="a")

    rig.store.settle(
        settlement(rig.tag, "a", first.epoch, Charge(TENANT, 30), Charge(DAY, 30, days))
    )
    await rig.settled()

    assert await rig.levels(TENANT) == [970]
    assert await gauge(rig, Charge(DAY, 0, days)) == Gauge(30)


async def test_inspection_says_what_a_request_would_get_and_takes_nothing(rig):
    days = rig.periods()
    await rig.seeded(Seed(PURSE, 1000))
    charges = (
        Charge(TENANT, 400),
        Charge(DAY, 400, days),
        Charge(slots(), 1),
        Charge(PURSE, 400),
    )
    await rig.reserve(*charges, reservation_id="a")

    seen = await rig.store.inspect(rig.tag, charges)
    more = await rig.store.inspect(rig.tag, (Charge(TENANT, 700), Charge(slots(), 2)))

    assert (seen.verdict.admitted, left(seen.verdict.levels)) == (True, [600, 600, 1, 600])
    assert (more.verdict.admitted, more.verdict.binding, more.verdict.reason) == (False, 0, "rate")
    used, day, holds, purse = seen.gauges
    assert (used, day, purse) == (Gauge(400), Gauge(0, 400), Gauge(0, 400, 1000))
    assert (holds.used, [each.holds for each in holds.holders]) == (1, [1])
    assert 0 < holds.holders[0].lease_ms <= 30_000
    assert abs(seen.now_ms - rig.clock_ms()) < 5_000
    assert await rig.levels(TENANT, slots()) == [600, 1]


async def test_inspection_of_a_tag_that_nobody_used_begins_no_epoch(rig):
    seen = await rig.store.inspect(rig.tag, (Charge(TENANT, 400),))

    assert seen.verdict.admitted
    assert left(seen.verdict.levels) == [1000]
