"""A server that came back as another: restarted from an older dump, or failed over.

It is known by its replication id. Rates keep what the data says, or have one burst at most; holds are
counted anew; money is refused until it was seeded; what was admitted in the life before is charged in
full when it ends, once.
"""

import asyncio

import pytest

from quotas.limits import Charge
from quotas.ports import Seed
from quotas.store.redis import RedisStore
from tests.support.limits import balance, bucket, left, settlement, slots
from tests.support.until import until

RATE, HOLDS, MONEY = bucket(), slots(capacity=5), balance()
CHARGES = (Charge(RATE, 100), Charge(HOLDS, 1), Charge(MONEY, 100))


@pytest.fixture
async def store(own_valkey):
    made = RedisStore(own_valkey.unix_url, name="redis", owner="o1", timeout_s=2.0)
    await made.start()
    yield made
    await made.close()


async def seeded(store, level, *counted):
    epoch = await store.epoch("t1")
    assert await store.seed("t1", epoch, [Seed(MONEY, level)], counted)
    return epoch


async def spend(store, name, verdict, amount):
    charged = [Charge(RATE, amount), Charge(HOLDS, 1), Charge(MONEY, amount)]
    store.settle(settlement("t1", name, verdict.epoch, *charged))
    assert await store.flush(4)


async def shown(store):
    """What is left of the rate, of the holds, and the balance."""
    probe = [Charge(limit, 0) for limit in (RATE, HOLDS, MONEY)]
    seen = await store.inspect("t1", probe)
    rate, holds, _ = left(seen.verdict.levels)
    return rate, holds, seen.gauges[2].balance


async def another_life(server, store, how):
    """The server goes and comes back, as of the dump that was saved before, or as its own replica."""
    if how == "older dump":
        server.kill()
        await until(lambda: not store._server.connected)
        server.start()
    else:
        server.admin.replicaof("127.0.0.1", 1)
        await asyncio.sleep(0.05)  # no failover there and back is quicker
        server.admin.replicaof("NO", "ONE")
    await until(lambda: store._server.connected)


@pytest.mark.parametrize("how", ["older dump", "failed over"])
async def test_money_is_what_sql_says_whatever_the_data_remembers(own_valkey, store, how):
    await seeded(store, 1_000)
    early = await store.reserve("t1", "early", CHARGES, 60)
    own_valkey.admin.save()
    late = await store.reserve("t1", "late", CHARGES, 60)
    done = await store.reserve("t1", "done", CHARGES, 60)
    await spend(store, "done", done, 90)
    assert await shown(store) == (710, 3, 910)

    await another_life(own_valkey, store, how)

    refused = await store.reserve("t1", "x", CHARGES, 60)
    assert (refused.admitted, refused.reason) == (False, "unbuilt")
    assert refused.epoch != early.epoch
    # SQL has "done"; the two that are open are held again, or not.
    assert await store.rehold("t1", "early", refused.epoch, CHARGES, 60)
    await seeded(store, 910, "done")
    await spend(store, "done", done, 90)  # once more: its acknowledgement was lost
    again = await store.reserve("t1", "x", CHARGES, 60)
    assert again.admitted
    await spend(store, "x", again, 10)
    await spend(store, "early", refused, 50)
    await spend(store, "late", late, 70)

    rate, holds, money = await shown(store)
    assert money == 910 - 10 - 50 - 70
    assert holds == 5
    # All that was used, and at most one burst more; nothing that was not given back is lost twice.
    used = 90 + 10 + 50 + 70
    assert 1_000 - used - 100 <= rate <= 1_000 - used + 90


@pytest.mark.parametrize("how", ["older dump", "failed over"])
async def test_what_was_admitted_before_is_charged_in_full_and_its_holds_are_gone(
    own_valkey, store, how
):
    own_valkey.admin.save()  # of an empty server
    rates = (Charge(RATE, 400), Charge(HOLDS, 2))
    first = await store.reserve("t1", "a", rates, 60)
    await store.reserve("t1", "gone", rates, 60)

    await another_life(own_valkey, store, how)

    rate, holds, _ = await shown(store)
    assert (rate, holds) == ((1_000, 5) if how == "older dump" else (200, 5))
    for _ in range(2):
        store.settle(settlement("t1", "a", first.epoch, Charge(RATE, 150), Charge(HOLDS, 2)))
        store.release("t1", "gone")
        assert await store.flush(4)
    after, holds, _ = await shown(store)
    assert (after, holds) == (rate - 150, 5)
