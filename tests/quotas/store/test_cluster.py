"""Three servers as one: who has which slot, slots on their way, and one server that is away."""

import asyncio

import pytest

from quotas.errors import QuotaError, StoreUnavailable
from quotas.limits import Charge
from quotas.store.cluster import slot_of
from quotas.store.pipeline import Target, one_server, parse_cluster
from quotas.store.redis import RedisStore
from tests.support.limits import bucket, left, settlement, slots
from tests.support.until import until

TOKENS, HOLDS = bucket(), slots(capacity=1_000)
CHARGES = (Charge(TOKENS, 10), Charge(HOLDS, 1))


@pytest.fixture
async def opened():
    stores = []

    async def open_one(cluster, **options):
        stores.append(RedisStore(cluster.tcp_url, name="redis", owner="o1", **options))
        await stores[-1].start()
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()


def tags_by_node(cluster, count=60):
    found = {node: [] for node in cluster.nodes}
    for number in range(count):
        tag = f"t{number}"
        found[cluster.owner(slot_of(f"tf2:{{{tag}}}:epoch"))].append(tag)
    assert all(found.values())
    return found


async def shown(store, tag):
    verdict = await store.reserve(tag, "probe", (Charge(TOKENS, 0), Charge(HOLDS, 0)), 60)
    store.release(tag, "probe")
    return left(verdict.levels)


@pytest.mark.parametrize(
    ("key", "same_as"),
    [("tf2:{t1}:epoch", "t1"), ("{t1}", "t1"), ("{}t1", "{}t1"), ("a{b", "a{b"), ("{a}{b}", "a")],
)
def test_slot_is_of_the_hash_tag(valkey_cluster, key, same_as):
    said = valkey_cluster.admin.execute_command("CLUSTER", "KEYSLOT", key)

    assert slot_of(key) == slot_of(same_as) == said


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("redis://h?cluster=true", [Target(host="h")]),
        (
            "rediss://u:p@a:1,b:2/?cluster=true",
            [
                Target(host="a", port=1, tls=True, username="u", password="p"),
                Target(host="b", port=2, tls=True, username="u", password="p"),
            ],
        ),
        ("redis://h:7/1", []),
        ("unix:///run/v.sock", []),
    ],
)
def test_url_says_whether_it_is_a_cluster(url, hosts):
    assert parse_cluster(url) == hosts


def test_what_any_server_can_do_is_asked_of_the_first():
    assert one_server("redis://u:p@a:1,b:2?cluster=true") == "redis://u:p@a:1"
    assert one_server("rediss://a/?cluster=true") == "rediss://a"
    assert one_server("redis://a:1/3") == "redis://a:1/3"


@pytest.mark.parametrize(
    "url",
    ["redis://:s3cret@a,b", "unix:///s3cret?cluster=true", "redis://a/3?cluster=true"],
)
def test_malformed_cluster_url_is_refused_without_repeating_it(url):
    with pytest.raises(QuotaError) as refused:
        parse_cluster(url)

    assert "s3cret" not in str(refused.value)


async def test_each_tenant_is_served_by_the_server_that_has_its_slot(valkey_cluster, opened):
    store = await opened(valkey_cluster)
    by_node = tags_by_node(valkey_cluster)

    for tags in by_node.values():
        assert (await store.reserve(tags[0], "a", CHARGES, 60)).admitted

    for node, tags in by_node.items():
        assert node.admin.exists(f"tf2:{{{tags[0]}}}:r:a")
    assert await store.ping() > 0


async def test_cluster_that_none_of_its_hosts_answers_for_is_unavailability(own_cluster):
    for node in own_cluster.nodes:
        node.kill()
    store = RedisStore(own_cluster.tcp_url, name="redis", owner="o1", timeout_s=0.2)

    with pytest.raises(StoreUnavailable):
        await store.start()

    await store.close()


async def test_slot_that_moves_loses_no_step_and_repeats_none(own_cluster, opened):
    """Reserves and settles all the while: asked for on the way (ASK), then for good (MOVED)."""
    store = await opened(own_cluster, timeout_s=2.0)
    tag = "t0"
    slot = slot_of(f"tf2:{{{tag}}}:epoch")
    old = own_cluster.owner(slot)
    new = next(node for node in own_cluster.nodes if node is not old)
    over, used = asyncio.Event(), 0
    refused = []

    async def client(number):
        nonlocal used
        for turn in range(10_000):
            if over.is_set():
                return
            name = f"r{number}-{turn}"
            try:
                verdict = await store.reserve(tag, name, (Charge(TOKENS, 2), Charge(HOLDS, 1)), 60)
            except StoreUnavailable as error:  # TRYAGAIN: its keys are neither here nor there
                refused.append(str(error))
                await asyncio.sleep(0.001)
                continue
            if not verdict.admitted:
                return
            used += 1
            store.settle(settlement(tag, name, verdict.epoch, Charge(TOKENS, 1), Charge(HOLDS, 1)))
            await asyncio.sleep(0.001)

    def asked(node, *command):
        return asyncio.to_thread(node.admin.execute_command, *command)

    held = await store.reserve(tag, "held", (Charge(TOKENS, 2), Charge(HOLDS, 1)), 60)
    clients = [asyncio.create_task(client(number)) for number in range(4)]
    await until(lambda: used > 20)
    await asked(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", old.id)
    await asked(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", new.id)
    while keys := await asked(old, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        await asked(old, "MIGRATE", "127.0.0.1", new.port, "", 0, 5_000, "KEYS", *keys)
        await asyncio.sleep(0.002)
    settled = asyncio.Event()  # all of its keys are there: it is asked for at the new one
    truly = (Charge(TOKENS, 1), Charge(HOLDS, 1))
    store.settle(settlement(tag, "held", held.epoch, *truly), settled.set)
    async with asyncio.timeout(3):
        await settled.wait()
    for node in (new, old, *own_cluster.nodes):
        await asked(node, "CLUSTER", "SETSLOT", slot, "NODE", new.id)
    before = used
    await until(lambda: used > before + 20)
    over.set()
    await asyncio.gather(*clients)

    assert await store.flush(5)
    assert all("TRYAGAIN" in each for each in refused)
    tokens, holds = await shown(store, tag)
    # At another server they are in another epoch: what was open then is charged in full.
    assert 1_000 - used - 1 - 2 * 5 <= tokens <= 1_000 - used - 1
    assert holds == 1_000
    assert new.admin.exists(f"tf2:{{{tag}}}:s:t1")
    assert (
        store._server._owner(f"tf2:{{{tag}}}:epoch")
        is store._server._servers["127.0.0.1", new.port]
    )


async def test_server_that_is_away_fails_its_own_tenants_alone_and_keeps_their_steps(
    own_cluster, opened
):
    store = await opened(own_cluster, timeout_s=0.2)
    by_node = tags_by_node(own_cluster)
    dead, *living = own_cluster.nodes
    tag = by_node[dead][0]
    verdict = await store.reserve(tag, "a", CHARGES, 60)
    dead.kill()
    await until(lambda: not store._server.ready(f"tf2:{{{tag}}}:epoch"))

    store.settle(settlement(tag, "a", verdict.epoch, Charge(TOKENS, 3), Charge(HOLDS, 1)))
    with pytest.raises(StoreUnavailable):
        await store.reserve(tag, "b", CHARGES, 60)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    for node in living:
        other = by_node[node][0]
        assert (await store.reserve(other, "a", CHARGES, 60)).admitted
        store.release(other, "a")
    await until(lambda: len(store._unacknowledged) == 1)
    dead.start()

    assert await store.flush(8)
    assert await shown(store, tag) == [997, 1_000]  # it came back empty: charged in full, once
