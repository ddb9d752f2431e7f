"""What only the in-process store has: its own memory of what ended, and forgotten reservations."""

import quotas.store.memory as memory_store
from quotas.limits import Charge
from quotas.store.memory import MemoryStore
from tests.support.limits import bucket, left, settlement, slots


async def test_ended_reservations_are_forgotten_beyond_the_ring(monkeypatch):
    monkeypatch.setattr(memory_store, "ENDED_KEPT", 10)
    store = MemoryStore()
    for n in range(100):
        verdict = await store.reserve("t1", f"r{n}", (Charge(bucket(), 1),), 60)
        store.settle(settlement("t1", f"r{n}", verdict.epoch, Charge(bucket(), 1)))

    assert len(store._tags["t1"].ended) == 10
    assert store._tags["t1"].open == {}


async def test_reservation_nobody_ends_is_dropped_in_time_and_refunds_nothing():
    now_ms = 0
    store = MemoryStore(lambda: now_ms)
    await store.reserve("t1", "lost", (Charge(bucket(), 400), Charge(slots(), 2)), 60)
    now_ms = 60_001

    await store.reserve("t1", "a", (Charge(bucket(), 0),), 60)
    verdict = await store.reserve("t1", "probe", (Charge(bucket(), 0), Charge(slots(), 0)), 60)

    assert left(verdict.levels) == [601, 2]
    assert "lost" not in store._tags["t1"].open


async def test_each_store_is_an_epoch_of_its_own():
    assert await MemoryStore().epoch("t1") != await MemoryStore().epoch("t1")


async def test_default_clock_runs():
    store = MemoryStore()

    assert await store.ping() == 0.0
    assert await store.flush(0)
    await store.close()
