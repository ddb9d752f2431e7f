"""One suite over both stores: what a reservation promises, whoever keeps it."""

import itertools

import pytest

from quotas.buckets import NEVER, TICKS
from quotas.errors import ReservationRefused
from quotas.limits import Charge
from quotas.reservation import TABLE, State, Step
from tests.support.limits import bucket, left, quota, settlement, slots

TENANT, PROJECT, KEY = bucket("t1"), bucket("p1"), bucket("k1")
HOLDS = slots("k1", capacity=2)


async def test_admission_takes_every_charge_and_shows_what_is_left(rig):
    verdict = await rig.reserve(Charge(TENANT, 100), Charge(KEY, 30), Charge(HOLDS, 1))

    assert verdict.admitted
    assert (verdict.binding, verdict.retry_after_ms) == (-1, 0)
    assert left(verdict.levels) == [900, 970, 1]
    assert verdict.levels[0].reset_ms == 100 * 60_000


async def test_refusal_takes_nothing_and_leaves_nothing(rig):
    refused = await rig.reserve(Charge(TENANT, 100), Charge(KEY, 1001), Charge(HOLDS, 1))

    assert not refused.admitted
    assert left(refused.levels) == [1000, 1000, 2]
    assert await rig.levels(TENANT, KEY, HOLDS) == [1000, 1000, 2]


async def test_refused_id_may_ask_again(rig):
    await rig.reserve(Charge(HOLDS, 2), reservation_id="open")
    assert not (await rig.reserve(Charge(HOLDS, 1), reservation_id="again")).admitted
    rig.store.release(rig.tag, "open")
    await rig.settled()

    assert (await rig.reserve(Charge(HOLDS, 1), reservation_id="again")).admitted


async def test_longest_wait_binds_and_names_the_wait(rig):
    quick, slow = bucket("t1", per_minute=60_000), bucket("k1", per_minute=6_000)
    assert (await rig.reserve(Charge(quick, 1000), Charge(slow, 1000))).admitted

    refused = await rig.reserve(Charge(quick, 500), Charge(slow, 500))

    assert refused.binding == 1
    assert 4_000 < refused.retry_after_ms <= 5_000


async def test_what_can_never_fit_binds_over_any_wait(rig):
    await rig.reserve(Charge(TENANT, 1000))

    refused = await rig.reserve(Charge(TENANT, 1), Charge(KEY, 1001), Charge(PROJECT, 2000))

    assert (refused.binding, refused.retry_after_ms) == (1, NEVER)


async def test_retry_after_is_honest(rig):
    limits = [bucket(f"s{n}", capacity=50, per_minute=60_000 * (n + 1)) for n in range(3)]
    for amount in (50, 7, 31, 50, 1):
        charges = [Charge(limit, amount) for limit in limits]
        verdict = await rig.reserve(*charges)
        while not verdict.admitted:
            assert 0 < verdict.retry_after_ms <= 50
            await rig.wait(verdict.retry_after_ms)
            verdict = await rig.reserve(*charges)
            assert verdict.admitted


async def test_charge_of_nothing_is_shown_but_never_refused(rig):
    first = await rig.reserve(Charge(TENANT, 1000), reservation_id="debtor")
    rig.store.settle(settlement(rig.tag, "debtor", first.epoch, Charge(TENANT, 1300)))
    await rig.settled()

    verdict = await rig.reserve(Charge(TENANT, 0), Charge(KEY, 10))

    assert verdict.admitted
    assert left(verdict.levels) == [-300, 990]


async def test_second_reserve_answers_the_first_verdict_and_charges_once(rig):
    first = await rig.reserve(Charge(TENANT, 100), Charge(HOLDS, 1), reservation_id="twice")
    await rig.reserve(Charge(TENANT, 50))

    again = await rig.reserve(Charge(TENANT, 900), Charge(HOLDS, 1), reservation_id="twice")

    assert again == first
    assert await rig.levels(TENANT, HOLDS) == [850, 1]


async def test_settled_id_still_answers_its_first_verdict(rig):
    first = await rig.reserve(Charge(TENANT, 100), reservation_id="done")
    rig.store.settle(settlement(rig.tag, "done", first.epoch, Charge(TENANT, 10)))
    await rig.settled()

    assert await rig.reserve(Charge(TENANT, 100), reservation_id="done") == first
    assert await rig.levels(TENANT) == [990]


async def test_settle_gives_back_what_was_not_used_and_takes_what_was_missing(rig):
    first = await rig.reserve(Charge(TENANT, 400), Charge(KEY, 400), reservation_id="a")

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(TENANT, 150), Charge(KEY, 1500)))
    await rig.settled()

    assert await rig.levels(TENANT, KEY) == [850, -500]


async def test_debt_is_repaid_before_the_next_admission(rig):
    limit = bucket("k1", capacity=100, per_minute=60_000)
    first = await rig.reserve(Charge(limit, 100), reservation_id="a")
    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(limit, 130)))
    await rig.settled()

    refused = await rig.reserve(Charge(limit, 10))

    assert not refused.admitted
    assert 1 <= refused.retry_after_ms <= 40


async def test_charge_without_its_scope_settles_by_dimension_and_else_stays_reserved(rig):
    requests = bucket("t1", "requests")
    first = await rig.reserve(Charge(TENANT, 400), Charge(requests, 1), reservation_id="a")

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(bucket("gone"), 100)))
    await rig.settled()

    assert await rig.levels(TENANT, requests) == [900, 999]
    assert await rig.levels(bucket("gone")) == [1000]


STEPS = (Step.SETTLE, Step.RELEASE, Step.EXPIRE)


@pytest.mark.parametrize("order", list(itertools.product(STEPS, repeat=3)), ids=str)
async def test_steps_in_any_order_and_number_act_once(rig, order):
    first = await rig.reserve(Charge(TENANT, 400), Charge(HOLDS, 2), reservation_id="a")
    state = State.HELD
    for step in order:
        if step is Step.SETTLE:
            rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(TENANT, 90)))
        elif step is Step.RELEASE:
            rig.store.release(rig.tag, "a")
        else:
            rig.store.expire(rig.tag, "a")
        state = TABLE[state].get(step, state)
    await rig.settled()

    expected = {State.SETTLED: 910, State.RELEASED: 1000, State.EXPIRED: 600}[state]
    assert await rig.levels(TENANT, HOLDS) == [expected, 2]


async def test_settle_of_an_unknown_id_changes_nothing(rig):
    first = await rig.reserve(Charge(TENANT, 100))

    rig.store.settle(settlement(rig.tag, "never", first.epoch, Charge(TENANT, 500)))
    rig.store.expire(rig.tag, "never")
    await rig.settled()

    assert await rig.levels(TENANT) == [900]


async def test_settle_of_another_epoch_charges_in_full_and_once(rig):
    first = await rig.reserve(Charge(TENANT, 400), Charge(HOLDS, 1), reservation_id="a")
    await rig.lose_everything()

    for _ in range(3):
        rig.store.settle(
            settlement(rig.tag, "a", first.epoch, Charge(TENANT, 150), Charge(HOLDS, 1))
        )
    await rig.settled()

    assert await rig.levels(TENANT, HOLDS) == [850, 2]
    second = await rig.reserve(Charge(TENANT, 0))
    assert second.epoch != first.epoch


async def test_lost_data_refills_at_most_one_burst(rig):
    await rig.reserve(Charge(TENANT, 1000))
    await rig.lose_everything()

    assert await rig.levels(TENANT) == [1000]


async def test_id_charged_in_full_is_not_admitted_again(rig):
    rig.store.settle(settlement(rig.tag, "a", "another life", Charge(TENANT, 150)))
    await rig.settled()

    with pytest.raises(ReservationRefused):
        await rig.reserve(Charge(TENANT, 1), reservation_id="a")


async def test_release_before_reserve_leaves_a_tombstone_that_refuses(rig):
    rig.store.release(rig.tag, "late")
    await rig.settled()

    with pytest.raises(ReservationRefused):
        await rig.reserve(Charge(TENANT, 100), Charge(HOLDS, 1), reservation_id="late")

    assert await rig.levels(TENANT, HOLDS) == [1000, 2]


async def test_change_of_a_limit_between_reserve_and_settle_leaks_nothing(rig):
    first = await rig.reserve(Charge(TENANT, 400), reservation_id="a")
    larger = bucket("t1", capacity=5000)
    assert await rig.levels(larger) == [600]

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(TENANT, 100)))
    await rig.settled()

    assert await rig.levels(larger) == [900]


async def test_limits_of_a_scope_come_and_go_and_each_keeps_its_usage(rig):
    tokens, requests, day, holds = bucket(), bucket("t1", "requests"), quota(), slots()
    periods = rig.periods()

    async def ask(name, *charges):
        return await rig.reserve(*charges, reservation_id=name)

    first = await ask("a", Charge(tokens, 100), Charge(holds, 1))
    second = await ask("b", Charge(requests, 1), Charge(day, 50, periods))
    third = await ask("c", Charge(day, 20, periods), Charge(tokens, 10), Charge(requests, 2))
    assert left(third.levels) == [930, 890, 997]
    less = bucket("t1", "requests", capacity=500)
    assert left((await ask("d", Charge(less, 0), Charge(holds, 1))).levels) == [500, 0]

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(tokens, 60), Charge(holds, 1)))
    rig.store.settle(
        settlement(rig.tag, "b", second.epoch, Charge(requests, 1), Charge(day, 10, periods))
    )
    rig.store.release(rig.tag, "c")
    await rig.settled()

    probe = await ask("e", *(Charge(limit, 0) for limit in (holds, tokens, less)),
                      Charge(day, 0, periods))  # fmt: skip
    assert left(probe.levels) == [1, 940, 500, 990]


async def test_refund_never_passes_the_limit_as_it_is_now(rig):
    await rig.reserve(Charge(TENANT, 400), reservation_id="a")
    smaller = bucket("t1", capacity=300)
    assert await rig.levels(smaller) == [300]

    rig.store.release(rig.tag, "a")
    await rig.settled()

    assert await rig.levels(smaller) == [300]


async def test_holds_never_pass_their_number(rig):
    assert (await rig.reserve(Charge(HOLDS, 1), reservation_id="a")).admitted
    assert (await rig.reserve(Charge(HOLDS, 1), reservation_id="b")).admitted

    refused = await rig.reserve(Charge(HOLDS, 1))

    assert not refused.admitted
    assert (refused.binding, refused.retry_after_ms) == (0, 1000)


async def test_more_holds_than_there_are_never_fit(rig):
    refused = await rig.reserve(Charge(HOLDS, 3))

    assert (refused.admitted, refused.retry_after_ms) == (False, NEVER)


async def test_expiry_frees_the_hold_and_a_later_settle_does_not_free_another(rig):
    first = await rig.reserve(Charge(HOLDS, 1), reservation_id="a")
    rig.store.expire(rig.tag, "a")
    await rig.settled()
    assert (await rig.reserve(Charge(HOLDS, 2), reservation_id="b")).admitted

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(HOLDS, 1)))
    await rig.settled()

    assert await rig.levels(HOLDS) == [0]


@pytest.mark.parametrize("last", ["settle", "release"])
async def test_expired_hold_is_not_freed_again_beside_an_open_one(rig, last):
    first = await rig.reserve(Charge(HOLDS, 1), reservation_id="a")
    await rig.reserve(Charge(HOLDS, 1), reservation_id="b")
    rig.store.expire(rig.tag, "a")
    if last == "settle":
        rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(HOLDS, 1)))
    else:
        rig.store.release(rig.tag, "a")
    await rig.settled()

    assert await rig.levels(HOLDS) == [1]


async def test_refund_of_nothing_does_not_touch_a_limit(rig):
    await rig.reserve(Charge(TENANT, 0), reservation_id="a")
    rig.store.release(rig.tag, "a")
    await rig.settled()

    assert await rig.levels(bucket("t1", capacity=5000)) == [5000]


async def test_tenants_do_not_share_levels(rig):
    await rig.reserve(Charge(TENANT, 1000))

    verdict = await rig.store.reserve(f"{rig.tag}x", "a", (Charge(TENANT, 1000),), 60)

    assert verdict.admitted


async def test_names_are_opaque(rig):
    odd = bucket("a b:c {d} \n é", "t o:k %s", capacity=10)
    first = await rig.reserve(Charge(odd, 4), reservation_id="id with : and {")

    rig.store.settle(settlement(rig.tag, "id with : and {", first.epoch, Charge(odd, 1)))
    await rig.settled()

    assert await rig.levels(odd) == [9]


async def test_largest_limits_stay_exact(rig):
    huge = bucket("t1", capacity=10**11, per_minute=1)
    first = await rig.reserve(Charge(huge, 10**11 - 1), reservation_id="a")
    assert left(first.levels) == [1]
    assert first.levels[0].reset_ms == (10**11 - 1) * TICKS

    rig.store.settle(settlement(rig.tag, "a", first.epoch, Charge(huge, 10**11)))
    await rig.settled()

    assert await rig.levels(huge) == [0]


@pytest.mark.parametrize("amounts", [(1, 1), (-1,)], ids=["named twice", "negative"])
async def test_malformed_charges_are_refused_before_anything_is_taken(rig, amounts):
    with pytest.raises(ReservationRefused):
        await rig.reserve(*(Charge(TENANT, amount) for amount in amounts))

    assert await rig.levels(TENANT) == [1000]


async def test_reservation_of_no_limit_is_admitted(rig):
    verdict = await rig.reserve()

    assert (verdict.admitted, verdict.levels) == (True, ())


async def test_done_runs_once_for_each_queued_step(rig):
    ran = []
    first = await rig.reserve(Charge(TENANT, 1), reservation_id="a")

    rig.store.settle(
        settlement(rig.tag, "a", first.epoch, Charge(TENANT, 1)), lambda: ran.append("settle")
    )
    rig.store.release(rig.tag, "a", lambda: ran.append("release"))
    await rig.settled()
    await rig.store.ping()

    assert ran == ["settle", "release"]
    assert rig.store.settle_lag_s() == 0


async def test_a_process_that_lives_counts_until_it_leaves(rig):
    assert await rig.store.heartbeat() >= 1
    assert await rig.store.heartbeat(leaving=True) == 0
    assert await rig.store.heartbeat() == 1
    await rig.store.heartbeat(leaving=True)
