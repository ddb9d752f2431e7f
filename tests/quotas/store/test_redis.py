"""What only the shared store has: owners and leases, outages, queued steps, keys, proofs of bounds."""

import asyncio
import random
import time

import msgspec
import pytest
import redis

import quotas.store.redis as redis_store
from quotas.errors import QuotaError, StoreUnavailable
from quotas.limits import Charge
from quotas.store import server
from quotas.store.redis import RedisStore
from tests.support.limits import bucket, left, settlement, slots
from tests.support.until import until

TENANT, KEY = bucket("t1"), bucket("k1")


def leases(server, tag, **set_to):
    """The tag's leases, owner -> ms it lives to; set first, where any are given."""
    key = f"tf2:{{{tag}}}:leases"
    with redis.Redis(unix_socket_path=str(server.socket)) as raw:
        if set_to:
            kept = msgspec.msgpack.decode(raw.get(key) or b"\x80")
            numbers = {owner: number for owner, (_, number) in kept.items()}
            made = {
                owner: (ms, numbers.get(owner, n)) for n, (owner, ms) in enumerate(set_to.items())
            }
            raw.set(key, msgspec.msgpack.encode(made))
        return {owner: ms for owner, (ms, _) in msgspec.msgpack.decode(raw.get(key)).items()}


async def holders(store, tag, limit):
    return (await store.inspect(tag, (Charge(limit, 1),))).gauges[0].holders


@pytest.fixture
async def opened():
    """Opens stores that the test leaves to us to close."""
    stores = []

    async def open_one(server, owner="o1", **options):
        store = RedisStore(server.unix_url, name="redis", owner=owner, **options)
        stores.append(store)
        await store.start()
        return store

    yield open_one
    for store in stores:
        await store.close()


async def test_every_key_of_a_tenant_shares_its_hash_tag_and_all_but_the_epoch_expire(
    own_valkey, opened
):
    store = await opened(own_valkey)
    for n in range(3):
        charges = (Charge(TENANT, 5), Charge(KEY, 5), Charge(slots(capacity=3), 1))
        await store.reserve("t7", f"r{n}", charges, 60)
    store.settle(settlement("t7", "r0", "", Charge(TENANT, 1)))
    store.expire("t7", "r2")
    store.release("t7", "unknown")
    store.settle(settlement("t7", "lost", "another life", Charge(TENANT, 1)))
    assert await store.flush(2)

    keys = own_valkey.admin.keys()

    assert all(key.startswith("tf2:{t7}:") for key in keys)
    forever = [key for key in keys if own_valkey.admin.ttl(key) < 0]
    assert forever == ["tf2:{t7}:epoch"]
    for held in ("r1", "r2"):
        assert 0 < own_valkey.admin.pttl(f"tf2:{{t7}}:r:{held}") <= 60_000


async def test_scope_lives_until_its_buckets_are_full_and_absent_is_full(valkey, opened, tag):
    store = await opened(valkey)
    limit = bucket("k1", capacity=600, per_minute=60)
    await store.reserve(tag, "a", (Charge(limit, 600),), 60)

    alive_ms = valkey.admin.pttl(f"tf2:{{{tag}}}:s:k1")

    assert 600_000 < alive_ms <= 600_000 + 60_000 + 3_600_000


async def test_holds_of_a_process_whose_lease_ran_out_go_free(valkey, opened, tag):
    dead, alive = await opened(valkey, "dead"), await opened(valkey, "alive")
    assert (await dead.reserve(tag, "a", (Charge(slots(), 2),), 60)).admitted
    assert not (await alive.reserve(tag, "b", (Charge(slots(), 1),), 60)).admitted

    leases(valkey, tag, dead=1)

    assert (await alive.reserve(tag, "c", (Charge(slots(), 1),), 60)).admitted
    assert [each.owner for each in await holders(alive, tag, slots())] == ["alive"]


async def test_settle_of_a_pruned_hold_does_not_free_a_later_one_of_the_same_process(
    valkey, opened, tag
):
    frozen, other = await opened(valkey, "frozen"), await opened(valkey, "other")
    first = await frozen.reserve(tag, "old", (Charge(slots(), 1),), 60)
    leases(valkey, tag, frozen=1)
    await other.reserve(tag, "b", (Charge(slots(), 1),), 60)  # prunes
    assert (await frozen.reserve(tag, "new", (Charge(slots(), 1),), 60)).admitted

    frozen.settle(settlement(tag, "old", first.epoch, Charge(slots(), 1)))
    assert await frozen.flush(2)

    assert not (await other.reserve(tag, "c", (Charge(slots(), 1),), 60)).admitted


async def test_holds_that_nobody_pruned_are_there_again_when_their_process_is(valkey, opened, tag):
    """The store was away for longer than a lease: whoever renews first takes nothing from the others."""
    first, other = await opened(valkey, "first"), await opened(valkey, "other")
    held = await first.reserve(tag, "a", (Charge(slots(), 1),), 60)
    await other.reserve(tag, "b", (Charge(slots(), 1),), 60)
    run_out_ms = other.clock_ms - 1_000
    leases(valkey, tag, first=run_out_ms, other=run_out_ms)

    for store in (other, first):
        store._renew()
        await store.ping()

    assert not (await other.reserve(tag, "c", (Charge(slots(), 1),), 60)).admitted
    first.settle(settlement(tag, "a", held.epoch, Charge(slots(), 1)))
    assert await first.flush(2)
    assert (await other.reserve(tag, "d", (Charge(slots(), 1),), 60)).admitted


async def test_lease_is_renewed_while_something_is_held_and_only_then(
    valkey, opened, tag, monkeypatch
):
    monkeypatch.setattr(redis_store, "RENEW_EVERY_S", 0.02)
    store = await opened(valkey)
    await store.reserve(tag, "a", (Charge(slots(), 1), Charge(TENANT, 1)), 60)
    leases(valkey, tag, **{"o1": 5, "long dead": 5})
    await until(lambda: leases(valkey, tag).get("o1", 0) > 5)
    assert "long dead" not in leases(valkey, tag)

    store.release(tag, "a")
    assert await store.flush(2)
    leases(valkey, tag, o1=5)
    await asyncio.sleep(0.1)

    assert leases(valkey, tag) == {"o1": 5}


async def test_lease_is_renewed_as_soon_as_the_connection_is_back(own_valkey, opened):
    store = await opened(own_valkey)
    await store.reserve("t1", "a", (Charge(slots(), 1),), 60)
    leases(own_valkey, "t1", o1=5)

    own_valkey.admin.client_kill_filter(_type="normal", skipme=True)

    await until(lambda: leases(own_valkey, "t1").get("o1", 0) > 5)


async def test_refused_reservation_holds_no_lease(valkey, opened, tag):
    store = await opened(valkey)
    assert not (await store.reserve(tag, "a", (Charge(slots(), 3),), 60)).admitted

    assert store._holding == {}


async def test_backlog_leaves_room_for_admissions(valkey, opened, tag):
    store = await opened(valkey)
    for n in range(1000):
        store.release(tag, f"r{n}")

    assert store._server._in_flight == server.WINDOW
    assert (await store.reserve(tag, "a", (Charge(TENANT, 1),), 60)).admitted
    assert not await store.flush(0)
    assert await store.flush(3)


async def test_clock_that_stepped_back_grants_nothing_and_does_not_freeze(valkey, opened, tag):
    store = await opened(valkey)
    limit = bucket("k1", capacity=100, per_minute=60_000)
    key = f"tf2:{{{tag}}}:s:k1"
    await store.reserve(tag, "a", (Charge(limit, 100),), 60)
    future_ms = store.clock_ms + 3_600_000
    # The scope's one level ends its string: ticks, then when.
    write = (
        "local at = redis.call('STRLEN', KEYS[1]) - 16 "
        "return redis.call('SETRANGE', KEYS[1], at, struct.pack('<dd', 0, ARGV[1]))"
    )
    read = "local at_ms = struct.unpack('<d', redis.call('GETRANGE', KEYS[1], -8, -1)) return at_ms"
    valkey.admin.eval(write, 1, key, future_ms)

    refused = await store.reserve(tag, "b", (Charge(limit, 20),), 60)
    anchored_ms = valkey.admin.eval(read, 1, key)
    await asyncio.sleep(0.025)

    assert (refused.admitted, left(refused.levels), refused.retry_after_ms) == (False, [0], 20)
    assert anchored_ms < future_ms - 3_500_000
    assert (await store.reserve(tag, "c", (Charge(limit, 20),), 60)).admitted


async def test_reservation_that_outlived_its_epoch_is_charged_in_full_and_refunds_nothing(
    valkey, opened, tag
):
    """The epoch's key was evicted: nobody knows which levels went with it."""
    store = await opened(valkey)
    charges = (Charge(TENANT, 400), Charge(slots(), 1))
    first = await store.reserve(tag, "settled", charges, 60)
    await store.reserve(tag, "released", charges, 60)
    valkey.admin.delete(f"tf2:{{{tag}}}:epoch")

    for _ in range(2):
        store.release(tag, "released")
        store.settle(settlement(tag, "settled", first.epoch, Charge(TENANT, 150)))
    assert await store.flush(2)

    verdict = await store.reserve(tag, "probe", (Charge(TENANT, 0), Charge(slots(), 0)), 60)
    assert left(verdict.levels) == [50, 2]
    assert verdict.epoch != first.epoch


async def test_scripts_that_the_server_forgot_are_sent_again(valkey, opened, tag):
    store = await opened(valkey)
    await store.ping()
    valkey.admin.function_flush()
    first = await store.reserve(tag, "a", (Charge(TENANT, 100),), 60)
    valkey.admin.function_flush()

    store.settle(settlement(tag, "a", first.epoch, Charge(TENANT, 40)))

    assert await store.flush(2)
    assert left((await store.reserve(tag, "b", (Charge(TENANT, 0),), 60)).levels) == [960]


async def test_queued_steps_outlive_a_killed_server_and_are_acknowledged_once(own_valkey, opened):
    store = await opened(own_valkey)
    first = await store.reserve("t1", "r0", (Charge(TENANT, 10),), 60)
    own_valkey.kill()
    acknowledged = []
    for n in range(600):
        store.settle(
            settlement("t1", f"r{n}", first.epoch, Charge(TENANT, 1)),
            lambda n=n: acknowledged.append(n),
        )
    assert not await store.flush(0.1)
    assert store.settle_lag_s() >= 0.1

    own_valkey.start()

    assert await store.flush(4)
    await until(lambda: len(acknowledged) == 600)
    assert sorted(acknowledged) == list(range(600))
    # A new life of the data: every one of them was charged in full, once.
    verdict = await store.reserve("t1", "probe", (Charge(TENANT, 0),), 60)
    assert left(verdict.levels) == [400]
    assert store.settle_lag_s() == 0


async def test_reserve_while_down_fails_at_once_and_leaves_nothing_queued(own_valkey, opened):
    store = await opened(own_valkey)
    own_valkey.kill()
    await until(lambda: not store._server.connected)

    with pytest.raises(StoreUnavailable):
        await store.reserve("t1", "a", (Charge(TENANT, 1),), 60)
    with pytest.raises(StoreUnavailable):
        await store.ping()

    assert await store.flush(0)


async def test_reserve_that_ran_out_of_time_is_released_when_the_store_is_back(own_valkey, opened):
    store = await opened(own_valkey, timeout_s=0.1)
    await store.reserve("t1", "before", (Charge(TENANT, 0),), 60)
    own_valkey.pause()

    late = await asyncio.gather(
        *(
            store.reserve("t1", f"r{n}", (Charge(TENANT, 10), Charge(slots(), 1)), 60)
            for n in "abc"
        ),
        return_exceptions=True,
    )
    own_valkey.resume()

    assert {type(reply) for reply in late} == {StoreUnavailable}
    assert await store.flush(4)
    verdict = await store.reserve("t1", "probe", (Charge(TENANT, 0), Charge(slots(), 0)), 60)
    assert left(verdict.levels) == [1000, 2]


async def test_store_that_hangs_for_long_is_left_and_found_again(own_valkey, opened):
    store = await opened(own_valkey, timeout_s=0.1)
    first = await store.reserve("t1", "a", (Charge(TENANT, 100),), 60)
    own_valkey.pause()
    store.settle(settlement("t1", "a", first.epoch, Charge(TENANT, 30)))
    await until(lambda: not store._server.connected)
    own_valkey.resume()

    assert await store.flush(4)
    verdict = await store.reserve("t1", "probe", (Charge(TENANT, 0),), 60)
    assert left(verdict.levels) == [970]


async def test_two_thousand_cancelled_reserves_leak_nothing(valkey, opened, tag):
    chance = random.Random(11)
    store = await opened(valkey, timeout_s=2.0)
    holds, tokens = slots(capacity=10**6), bucket(capacity=10**6)
    wrong = cancelled = 0

    async def one(name, amount):
        nonlocal wrong
        first = await store.reserve(tag, name, (Charge(tokens, amount), Charge(holds, 1)), 60)
        again = await store.reserve(tag, name, (Charge(tokens, amount), Charge(holds, 1)), 60)
        wrong += first != again
        store.release(tag, name)

    for start in range(0, 3200, 80):
        tasks = [asyncio.create_task(one(f"r{start + n}", n + 1)) for n in range(80)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 55):
            cancelled += task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert await store.flush(4)
    verdict = await store.reserve(tag, "probe", (Charge(tokens, 0), Charge(holds, 0)), 60)
    assert cancelled >= 2000
    assert wrong == 0
    assert left(verdict.levels) == [10**6, 10**6]
    assert store._holding == {}


async def test_server_out_of_memory_is_unavailability_and_steps_wait_for_room(own_valkey, opened):
    store = await opened(own_valkey)
    first = await store.reserve("t1", "a", (Charge(TENANT, 100),), 60)
    own_valkey.admin.config_set("maxmemory", 1)

    with pytest.raises(StoreUnavailable, match="OOM"):
        await store.reserve("t1", "b", (Charge(TENANT, 100),), 60)
    store.settle(settlement("t1", "a", first.epoch, Charge(TENANT, 30)))
    assert not await store.flush(0.1)
    own_valkey.admin.config_set("maxmemory", 0)

    assert await store.flush(2)
    verdict = await store.reserve("t1", "probe", (Charge(TENANT, 0),), 60)
    assert left(verdict.levels) == [970]


async def test_replica_is_left_for_whoever_is_primary_now(own_valkey, opened):
    store = await opened(own_valkey)
    await store.reserve("t1", "a", (Charge(TENANT, 100),), 60)
    own_valkey.admin.replicaof("127.0.0.1", 1)

    with pytest.raises(StoreUnavailable):
        await store.reserve("t1", "b", (Charge(TENANT, 100),), 60)
    own_valkey.admin.replicaof("NO", "ONE")

    assert await store.flush(4)
    verdict = await store.reserve("t1", "probe", (Charge(TENANT, 0),), 60)
    assert left(verdict.levels) == [900]


async def test_malformed_url_is_refused_at_once():
    with pytest.raises(QuotaError):
        RedisStore("memcached://h", name="redis", owner="o1")


async def test_levels_never_overshoot_burst_and_refill(valkey, opened, tag):
    """32 tasks on two processes' stores: used <= burst + rate x time, whatever is refunded."""
    chance = random.Random(3)
    stores = [await opened(valkey, owner, timeout_s=2.0) for owner in ("o1", "o2")]
    limits = [bucket(f"s{n}", capacity=4_000, per_minute=600_000) for n in range(3)]
    used = admitted = refused = 0
    began_ms = time.monotonic_ns() // 1_000_000

    async def task(number):
        nonlocal used, admitted, refused
        store = stores[number % 2]
        for turn in range(40):
            name = f"r{number}-{turn}"
            asked = chance.randrange(100, 500)
            charges = [Charge(limit, asked) for limit in limits]
            verdict = await store.reserve(tag, name, charges, 60)
            if not verdict.admitted:
                refused += 1
                await asyncio.sleep(chance.random() * 0.002)
                continue
            admitted += 1
            truly = chance.randrange(asked // 4, asked + 1)
            await asyncio.sleep(chance.random() * 0.002)
            used += truly
            actual = [Charge(limit, truly) for limit in limits]
            store.settle(settlement(tag, name, verdict.epoch, *actual))

    await asyncio.gather(*(task(number) for number in range(32)))
    for store in stores:
        assert await store.flush(3)
    took_ms = time.monotonic_ns() // 1_000_000 - began_ms + 2

    assert refused > 100
    assert admitted > 20
    assert used <= 4_000 + 10 * took_ms


async def test_holds_never_exceed_their_number_over_two_processes(valkey, opened, tag):
    chance = random.Random(5)
    stores = [await opened(valkey, owner, timeout_s=2.0) for owner in ("o1", "o2")]
    limit = slots(capacity=5)
    running = most = refused = 0

    async def task(number):
        nonlocal running, most, refused
        store = stores[number % 2]
        for turn in range(25):
            name = f"r{number}-{turn}"
            verdict = await store.reserve(tag, name, (Charge(limit, 1),), 60)
            if not verdict.admitted:
                refused += 1
                await asyncio.sleep(0)
                continue
            running += 1
            most = max(most, running)
            await asyncio.sleep(chance.random() * 0.003)
            running -= 1
            if chance.random() < 0.5:
                store.release(tag, name)
            else:
                store.settle(settlement(tag, name, verdict.epoch, Charge(limit, 1)))

    await asyncio.gather(*(task(number) for number in range(32)))
    for store in stores:
        assert await store.flush(3)

    verdict = await stores[0].reserve(tag, "probe", (Charge(limit, 0),), 60)
    assert most == 5
    assert refused > 50
    assert left(verdict.levels) == [5]
