"""One server of the store away: its own tenants are decided here, and it is owed what they were given."""

import asyncio
import time

import pytest

from gateway.admission import Admission
from gateway.balances import Balances
from gateway.leases import Leases
from gateway.outages import Outages
from gateway.snapshot import KeyDoc, Principal, ProjectDoc, TenantDoc
from gateway.telemetry.counters import Counters
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from tests.support.limits import left
from tests.support.until import until
from tests.support.valkey_cluster import own_cluster

__all__ = ["own_cluster"]

NOW_MS = 1_800_000_000_000


def rate(scope="k1"):
    return Limit(scope, "key", "tokens", "bucket", 600, 600, 1, outage="local_share")


def slots(capacity):
    return Limit(
        "k1", "key", "concurrency", "concurrency", capacity, 0, 1, "now", outage="local_share"
    )


class Store(MemoryStore):
    """Two servers: tags that begin with "a" are of one, which is away, or wherever they were moved."""

    def __init__(self):
        super().__init__(lambda: NOW_MS)
        self.away = {"a"}
        self.moved = {}
        self.settled = []

    def part(self, tag):
        return self.moved.get(tag, tag[0])

    async def ping(self, part=None):
        if part in self.away:
            raise StoreUnavailable("away")
        return 0.0

    async def flush(self, timeout_s, part=None):
        assert part not in self.away, "what waits for another server is not waited for"
        return True

    def settle(self, settlement, done=None):
        self.settled.append((settlement.tag, settlement.reservation_id))
        super().settle(settlement, done)


class Bench:
    def __init__(self):
        self.store = Store()
        self.now_ms = NOW_MS
        leases = Leases(
            self.store, Counters(), name="p", processes=lambda: 1, monotonic=lambda: 0.0
        )
        self.outages = Outages(self.store, leases, processes=lambda: 1, unix_ms=lambda: self.now_ms)

    def admit(self, tag, request_id, *charges):
        return self.outages.admit(tag, request_id, charges).admitted

    def lose(self, tag):
        """Its server, a minute ago: a share has gathered since."""
        self.outages.lose(tag)
        self.admit(tag, "first", Charge(rate(), 1))
        self.now_ms += 60_000


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    await made.outages.close()


async def test_tenants_of_other_servers_are_asked_for_as_ever(bench):
    assert not bench.outages.away("a1")
    bench.outages.lose("a1")

    assert bench.outages.away("a1")
    assert bench.outages.away("a2"), "of the same server, and not asked in vain"
    assert not bench.outages.away("b1")


async def test_each_server_comes_back_by_itself_and_is_owed_its_own(bench):
    bench.store.away.add("b")
    for tag in ("a1", "b1"):
        bench.lose(tag)
        assert bench.admit(tag, "r1", Charge(rate(), 100))
    bench.store.away.remove("b")
    await until(lambda: not bench.outages.away("b1"))

    assert bench.store.settled == [("b1", "r1+")]
    assert bench.outages.away("a1")
    assert list(bench.outages.parts) == ["a"]


async def test_tenant_whose_levels_moved_is_charged_where_they_are_before_it_is_asked(bench):
    bench.lose("a1")
    assert bench.admit("a1", "r1", Charge(rate(), 100))
    bench.store.moved["a1"] = "c"  # a replica took over; "a" stays away
    assert bench.outages.away("a1"), "it owes"
    assert not bench.outages.parts.keys() & {"c"}
    await until(lambda: not bench.outages.away("a1"))

    assert bench.store.settled == [("a1", "r1+")]


async def test_tenant_that_comes_while_debts_are_told_is_owed_for_as_well(bench):
    bench.lose("a1")
    gate = asyncio.Event()

    async def flush(_timeout_s, _part=None):
        if not gate.is_set():
            gate.set()
            assert bench.admit("a2", "late", Charge(rate(), 1))
        return True

    bench.store.flush = flush
    bench.store.away.clear()
    await until(lambda: not bench.outages.parts)

    assert ("a2", "late+") in bench.store.settled
    assert not bench.outages.away("a2")


async def test_holds_of_a_request_outlive_the_outage_and_end_with_it(bench):
    bench.outages.lose("a1")
    assert bench.admit("a1", "r1", Charge(slots(1), 1))
    bench.store.away.clear()
    await until(lambda: not bench.outages.parts)

    bench.store.away.add("a")
    bench.outages.lose("a1")
    assert not bench.admit("a1", "r2", Charge(slots(1), 1)), "r1 still runs"
    assert bench.outages.ended("a1", "r1") == ((), ()), "it was charged already"
    assert bench.admit("a1", "r3", Charge(slots(1), 1))


async def test_what_nothing_came_of_is_there_again_and_owed_to_nobody(bench):
    bench.lose("a1")
    assert bench.admit("a1", "r1", Charge(rate(), 590))
    assert not bench.admit("a1", "r2", Charge(rate(), 590))
    bench.outages.undo("a1", "r1")
    assert bench.admit("a1", "r3", Charge(rate(), 590))
    assert bench.outages.ended("a1", "r3") == ((Charge(rate(), 590),), ())
    bench.store.away.clear()
    await until(lambda: not bench.outages.parts)

    assert bench.store.settled == []


# -- three real servers ----------------------------------------------------------------------


def tenant(number):
    return Principal(
        KeyDoc(id=number, project_id=1, name="k", path="a/p/k", secrets=()),
        ProjectDoc(id=1, tenant_id=number, name="p"),
        TenantDoc(id=number, name="a"),
    )


def one_tenant_each(cluster, store):
    """Of each server's port, a tenant that it has."""
    found = {}
    for number in range(1, 100):
        found.setdefault(int(store.part(f"t{number}").rpartition(":")[2]), tenant(number))
    assert set(found) == {node.port for node in cluster.nodes}
    return found


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_server_of_a_cluster_that_is_away_takes_nobody_elses_limits_with_it(
    own_cluster, how
):
    store = RedisStore(own_cluster.tcp_url, name="redis", owner="p", timeout_s=0.2)
    await store.start()
    leases = Leases(store, Counters(), name="p", processes=lambda: 1, monotonic=time.monotonic)
    admission = Admission(
        store,
        Balances(store, None, list),
        leases,
        processes=lambda: 1,
        unix_ms=lambda: int(time.time() * 1000),
    )
    quick = Limit("k1", "key", "tokens", "bucket", 600, 6_000, 1, outage="local_share")
    closed = Limit("k1", "key", "requests", "bucket", 600, 1, 1, outage="fail_closed")
    names = iter(range(10_000))

    async def reserve(principal, *limits, amount=1):
        charges = tuple(Charge(limit, amount) for limit in limits)
        return await admission.reserve(principal, f"{next(names):032x}", charges, 60)

    try:
        tenants = one_tenant_each(own_cluster, store)
        dead, *living = own_cluster.nodes
        lost, others = tenants[dead.port], [tenants[node.port] for node in living]
        for each in tenants.values():
            assert (await reserve(each, quick, closed)).epoch
        dead.pause() if how == "stopped" else dead.kill()
        with pytest.raises(StoreUnavailable):
            await reserve(lost, closed)

        waits_s = []
        admitted = 0
        until_s = time.monotonic() + 2.0  # longer than the cluster needs to call it failed
        while time.monotonic() < until_s:
            for each in others:
                began_s = time.monotonic()
                verdict = await reserve(each, quick, closed, amount=0)
                waits_s.append(time.monotonic() - began_s)
                assert verdict.epoch, "decided by its own server"
            admitted += (await reserve(lost, quick, amount=10)).admitted
            await asyncio.sleep(0.02)
        waits_s.sort()
        assert waits_s[len(waits_s) * 9 // 10] < 0.1, "nobody waits for a server that is not theirs"
        assert 15 <= admitted <= 22  # 100 tokens a second, from nothing

        dead.resume() if how == "stopped" else dead.start()
        await until(lambda: not admission.away, timeout_s=8)
        after = await reserve(lost, quick, amount=0)
        assert after.epoch
        # Charged before it was asked: what it knew (or, killed, a burst) less what was admitted here.
        assert left(after.levels)[0] <= 700 - 10 * admitted
    finally:
        await admission.close()
        await store.close()
