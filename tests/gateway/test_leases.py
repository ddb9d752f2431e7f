"""Draws on what all tenants share: local where the lease covers them, the store's verdict elsewhere."""

import asyncio

import pytest

from gateway.leases import Leases
from gateway.telemetry.counters import Counters
from quotas.calendar import periods_at
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit, Verdict
from quotas.store.memory import MemoryStore
from tests.support.limits import bucket, slots

NOW_MS = 1_800_000_000_000


class Store(MemoryStore):
    def __init__(self):
        self.now_ms = NOW_MS
        super().__init__(lambda: self.now_ms)
        self.asked = []
        self.away = False

    async def reserve(self, tag, reservation_id, charges, ttl_s):
        self.asked.append(charges[0].amount)
        await asyncio.sleep(0)  # as over a socket
        if self.away:
            raise StoreUnavailable("away")
        return await super().reserve(tag, reservation_id, charges, ttl_s)

    async def level(self, limit, periods=None):
        seen = await self.inspect(limit.scope, (Charge(limit, 0, periods),))
        return seen.verdict.levels[0].remaining


class Process:
    def __init__(self, store, name="p", processes=1):
        self.now_s = 0.0
        self.counters = Counters()
        self.leases = Leases(
            store,
            self.counters,
            name=name,
            processes=lambda: processes,
            monotonic=lambda: self.now_s,
        )

    async def ask(self, *charges):
        draw = self.leases.draw(charges, away=lambda tag: False)
        if draw.lacking:
            refused = await self.leases.fetch(draw)
            if refused is not None:
                self.leases.put_back(draw)
                return refused
        return draw

    def counted(self, result):
        return self.counters.counters["tf_lease_draws_total"][result]


@pytest.fixture
async def store():
    return Store()


@pytest.fixture
async def process(store):
    made = Process(store)
    yield made
    made.leases.close()
    await asyncio.sleep(0)


async def settled(process):
    """Tasks that take in advance have run."""
    while process.leases._tasks:
        await asyncio.sleep(0)


async def test_the_first_asks_for_what_it_lacks_and_the_next_are_covered(store, process):
    limit = bucket("A", capacity=10_000)
    await process.ask(Charge(limit, 10))
    await process.ask(Charge(limit, 10))  # takes more in advance, beside the request
    await settled(process)
    for _ in range(3):
        await process.ask(Charge(limit, 10))
        await settled(process)

    assert store.asked[:2] == [10, 10]
    assert process.counted("covered") >= 2
    assert sum(store.asked) == 10_000 - await store.level(limit)


async def test_a_refusal_is_the_stores_own_and_holds_nothing(store, process):
    limit, other = bucket("M7", capacity=100, per_minute=60), bucket("A", capacity=500)
    await process.ask(Charge(other, 80), Charge(limit, 80))
    refused = await process.ask(Charge(other, 50), Charge(limit, 50))

    assert isinstance(refused, Verdict)
    assert (refused.binding, refused.reason, refused.retry_after_ms) == (1, "rate", 30_000)
    await settled(process)
    process.now_s += 5
    process.leases.tick()
    assert await store.level(other) == 500 - 80


async def test_larger_than_the_limit_is_never(store, process):
    limit = bucket("A", capacity=100, per_minute=60)
    refused = await process.ask(Charge(limit, 101))
    assert (refused.reason, refused.retry_after_ms) == ("never", -1)


async def test_what_was_not_used_is_drawn_again_and_goes_back_when_nobody_draws(store, process):
    limit = bucket("A", capacity=1_000)
    draw = await process.ask(Charge(limit, 90))
    process.leases.settle(draw, (Charge(limit, 20),))
    assert process.leases.held(limit).unspent >= 70
    again = await process.ask(Charge(limit, 60))
    assert store.asked[:1] == [90]
    process.leases.settle(again, (Charge(limit, 60),))
    await settled(process)
    process.now_s = 5.0
    process.leases.tick()
    assert await store.level(limit) == 1_000 - 20 - 60
    assert process.leases._leases == {}


async def test_no_more_than_a_part_of_the_limit_is_held_unspent(store, process):
    limit = bucket("A", capacity=1_000)
    draw = await process.ask(Charge(limit, 900))
    process.leases.settle(draw, (Charge(limit, 100),))
    assert process.leases.held(limit).unspent <= 100
    assert await store.level(limit) >= 800


async def test_a_settled_draw_acts_once(store, process):
    limit = bucket("A", capacity=1_000)
    draw = await process.ask(Charge(limit, 50))
    process.leases.settle(draw, (Charge(limit, 50),))
    process.leases.settle(draw, (Charge(limit, 50),))
    process.leases.put_back(draw)
    process.now_s = 5.0
    process.leases.tick()
    assert await store.level(limit) == 950


async def test_what_a_dead_process_had_taken_counts_as_used(store):
    limit = bucket("A", capacity=1_000)
    dead = Process(store)
    draw = await dead.ask(Charge(limit, 300))
    dead.leases.settle(draw, (Charge(limit, 200),))
    assert dead.leases.held(limit).unspent == 100
    assert await store.level(limit) == 700
    alive = Process(store, "q")
    assert isinstance(await alive.ask(Charge(limit, 701)), Verdict)
    assert not isinstance(await alive.ask(Charge(limit, 700)), Verdict)


async def test_slots_are_held_by_the_lease_and_come_back(store, process):
    limit = slots("G1", capacity=2)
    first, second = await process.ask(Charge(limit, 1)), await process.ask(Charge(limit, 1))
    refused = await process.ask(Charge(limit, 1))
    assert refused.reason == "concurrency"
    process.leases.settle(first, (Charge(limit, 0),))
    third = await process.ask(Charge(limit, 1))
    assert not isinstance(third, Verdict)
    for draw in (second, third):
        process.leases.settle(draw, (Charge(limit, 0),))
    assert await store.level(limit) == 2


async def test_holds_that_are_out_are_held_again_after_an_outage(store, process):
    limit = slots("G1", capacity=100)
    draws = [await process.ask(Charge(limit, 1)) for _ in range(3)]
    await settled(process)
    await process.leases.regain(lambda tag: True)
    assert await store.level(limit) == 97
    for draw in draws:
        process.leases.settle(draw, (Charge(limit, 0),))
    process.leases.give_all_back()
    assert await store.level(limit) == 100


async def test_a_new_period_begins_with_nothing_in_advance(store, process):
    limit = Limit("M7", "model m", "tokens", "quota", 1_000, 0, 1, "day")
    periods = periods_at("day", NOW_MS)
    draw = await process.ask(Charge(limit, 60, periods))
    process.leases.settle(draw, (Charge(limit, 10, periods),))
    await settled(process)
    assert process.leases.held(limit).unspent >= 50
    left_ms = periods.ends_ms - NOW_MS
    store.now_ms += left_ms
    process.now_s += left_ms / 1000
    draw = await process.ask(Charge(limit, 30, periods))
    assert store.asked[2] == 30
    await settled(process)
    process.leases.settle(draw, (Charge(limit, 30, periods),))
    process.now_s += 5
    process.leases.tick()
    seen = await store.inspect("M7", (Charge(limit, 0, periods),))
    assert seen.gauges[0].used == 30


async def test_a_shadow_limit_is_counted_and_refuses_nothing(store, process):
    shadow = Limit("A", "platform", "tokens", "bucket", 100, 60, 1, shadow=True)
    await process.ask(Charge(shadow, 80))
    await settled(process)
    draw = await process.ask(Charge(shadow, 80))
    assert [limit.dimension for limit in draw.shadowed] == ["tokens"]
    process.leases.settle(draw, (Charge(shadow, 80),))
    assert await store.level(shadow) + process.leases.held(shadow).unspent == 20


async def test_a_store_that_is_away_leaves_the_draw_lacking(store, process):
    limit = bucket("A", capacity=1_000)
    store.away = True
    draw = process.leases.draw((Charge(limit, 10),), away=lambda tag: False)
    with pytest.raises(StoreUnavailable):
        await process.leases.fetch(draw)
    assert draw.lacking == [(0, 10)]
    assert process.leases.undo(draw) == [0]
    assert process.leases.held(limit).out == 0


async def test_many_processes_never_spend_more_than_the_limit_and_leave_little_unused(store):
    limit = bucket("A", capacity=2_000)
    crowd = [Process(store, f"p{n}", processes=4) for n in range(4)]
    used = 0
    for turn in range(400):
        process = crowd[turn % 4]
        draw = await process.ask(Charge(limit, 30))
        if isinstance(draw, Verdict):
            continue
        process.leases.settle(draw, (Charge(limit, 9),))
        used += 9
        await settled(process)
    held = sum(each.leases.held(limit).unspent for each in crowd)

    assert used <= 2_000
    assert held <= 2_000 // 10
    assert used >= 2_000 - held - 30
