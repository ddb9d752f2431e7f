"""While the store is away each process admits its part, and what it admitted is charged first."""

import asyncio

import pytest

from gateway.admission import Admission, NotAsked
from gateway.balances import Balances
from gateway.leases import Leases
from gateway.snapshot import KeyDoc, Principal, ProjectDoc, TenantDoc
from gateway.telemetry.counters import Counters
from quotas.calendar import periods_at
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit, Verdict
from quotas.ports import Seed
from quotas.store.memory import MemoryStore
from tests.support.until import until

NOW_MS = 1_800_000_000_000
PRINCIPAL = Principal(
    KeyDoc(id=3, project_id=2, name="c", path="a/b/c", secrets=()),
    ProjectDoc(id=2, tenant_id=1, name="b"),
    TenantDoc(id=1, name="a"),
)


def rate(capacity=600, per_minute=600, outage="local_share", **fields):
    return Limit("k3", "key", "tokens", "bucket", capacity, per_minute, 1, outage=outage, **fields)


class Store(MemoryStore):
    """A store that can be away."""

    def __init__(self):
        super().__init__(lambda: NOW_MS)
        self.away = False
        self.was_reached = True
        self.asked = 0
        self.settled = []

    async def reserve(self, tag, reservation_id, charges, ttl_s):
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().reserve(tag, reservation_id, charges, ttl_s)

    def settle(self, settlement, done=None):
        self.settled.append(settlement)
        super().settle(settlement, done)

    async def ping(self, part=None):
        if self.away:
            raise StoreUnavailable("away")
        return 0.0

    def reached(self, tag):
        return self.was_reached


class Bench:
    def __init__(self):
        self.store = Store()
        self.now_ms = NOW_MS
        balances = Balances(self.store, None, list)  # type: ignore[arg-type]
        self.now_s = 0.0
        self.leases = Leases(
            self.store, Counters(), name="p", processes=lambda: 1, monotonic=lambda: self.now_s
        )
        self.admission = Admission(
            self.store,
            balances,
            self.leases,
            processes=lambda: 1,
            unix_ms=lambda: self.now_ms,
        )

    def reserve(self, request_id, amount, limit):
        return self.admission.reserve(PRINCIPAL, request_id, (Charge(limit, amount),), 60)


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    await made.admission.close()


async def test_a_store_that_is_away_is_asked_once_and_then_no_more(bench):
    bench.store.away = True
    limit = rate(outage="fail_closed")
    with pytest.raises(StoreUnavailable) as first:
        await bench.reserve("r0", 1, limit)
    assert not isinstance(first.value, NotAsked)  # it may hold something
    for number in range(9):
        with pytest.raises(NotAsked):
            await bench.reserve(f"r{number}", 1, limit)

    assert bench.store.asked == 1
    assert bench.admission.away


async def test_what_was_admitted_without_the_store_is_charged_before_it_is_asked_again(bench):
    limit = rate()
    bench.store.away = True
    assert not (await bench.reserve("r0", 1, limit)).admitted
    bench.now_ms += 60_000
    open_one = await bench.reserve("r1", 400, limit)
    assert (open_one.admitted, open_one.epoch) == (True, "")
    bench.store.away = False
    await until(lambda: not bench.admission.away)

    assert [(each.reservation_id, each.epoch) for each in bench.store.settled] == [("r1+", "")]
    after = await bench.reserve("r2", 200, limit)
    assert after.admitted
    assert after.levels[0].remaining == 0
    assert not (await bench.reserve("r3", 1, limit)).admitted


async def test_an_ended_requests_own_settle_is_the_only_one(bench):
    limit = rate()
    bench.store.away = True
    await bench.reserve("r0", 1, limit)
    bench.now_ms += 60_000
    assert (await bench.reserve("r1", 400, limit)).admitted
    bench.admission.ended(PRINCIPAL, "r1", ())
    bench.store.away = False
    await until(lambda: not bench.admission.away)

    assert bench.store.settled == []


async def test_a_second_outage_begins_with_empty_buckets(bench):
    limit = rate()
    for _ in range(2):
        bench.store.away = True
        assert not (await bench.reserve("r0", 1, limit)).admitted
        bench.store.away = False
        await until(lambda: not bench.admission.away)
        await asyncio.sleep(0)


def shared(capacity=600, outage="local_share", scope="A", **fields):
    return Limit(scope, "platform", "tokens", "bucket", capacity, 600, 1, outage=outage, **fields)


async def test_a_lease_is_drawn_while_the_store_is_away_and_then_its_outage_rules(bench):
    limit, closed = shared(), shared(outage="fail_closed", scope="M7")
    for each in (limit, closed):
        draw = await bench.admission.draw("r0", (Charge(each, 50),))
        bench.admission.settle("r0", draw, (Charge(each, 0),))
    bench.store.away = True
    assert not isinstance(await bench.admission.draw("r1", (Charge(closed, 40),)), Verdict)
    assert not bench.admission.away
    with pytest.raises(NotAsked):
        await bench.admission.draw("r2", (Charge(closed, 40),))
    assert bench.admission.away
    assert not isinstance(await bench.admission.draw("r3", (Charge(limit, 40),)), Verdict)
    refused = await bench.admission.draw("r4", (Charge(limit, 30),))
    assert (refused.reason, refused.binding) == ("rate", 0)  # a share starts empty
    bench.now_ms += 60_000
    assert not isinstance(await bench.admission.draw("r5", (Charge(limit, 30),)), Verdict)


async def test_what_was_shared_without_the_store_is_charged_to_its_own_tag(bench):
    limit = shared()
    bench.store.away = True
    await bench.admission.draw("r0", (Charge(limit, 1),))
    bench.now_ms += 60_000
    ended = await bench.admission.draw("r1", (Charge(limit, 200),))
    back = await bench.admission.draw("r2", (Charge(limit, 100),))
    still_open = await bench.admission.draw("r3", (Charge(limit, 100),))
    assert not any(isinstance(each, Verdict) for each in (ended, back, still_open))
    bench.admission.settle("r1", ended, (Charge(limit, 150),))
    bench.admission.put_back("r2", back)
    bench.store.away = False
    await until(lambda: not bench.admission.away)

    owed = [
        (s.tag, s.reservation_id, s.charged[0].amount) for s in bench.store.settled if s.epoch == ""
    ]
    assert owed == [("A", "r1+", 150), ("A", "r3+", 100)]
    seen = await bench.store.inspect("A", (Charge(limit, 0),))
    assert seen.verdict.levels[0].remaining == 600 - 250


BUDGET = Limit("k3", "key", "money", "quota", 10**9, 0, 1, "lifetime")
PERIODS = periods_at("lifetime", NOW_MS)
PAYER = Principal(
    KeyDoc(id=3, project_id=2, name="c", path="a/b/c", secrets=()),
    ProjectDoc(id=2, tenant_id=1, name="b"),
    TenantDoc(id=1, name="a", offline_credit_micro=1_000),
)


def money(bench, request_id, micro, principal=PAYER):
    charges = (Charge(BUDGET, micro, PERIODS),)
    return bench.admission.reserve(principal, request_id, charges, 60)


async def used(bench):
    seen = await bench.store.inspect("t1", (Charge(BUDGET, 0, PERIODS),))
    return seen.gauges[0].used


async def test_money_is_spent_without_the_store_on_a_configured_credit_alone(bench):
    epoch = await bench.store.epoch("t1")
    await bench.store.seed("t1", epoch, (Seed(BUDGET, 0, PERIODS.this_id),))
    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await money(bench, "r0", 10, PRINCIPAL)
    assert (await money(bench, "r1", 600)).admitted
    with pytest.raises(NotAsked):
        await money(bench, "r2", 401)
    assert (await money(bench, "r3", 400)).admitted
    bench.admission.ended(PAYER, "r3", (Charge(BUDGET, 100, PERIODS),))
    assert bench.admission.on_credit_micro == 700
    assert (await money(bench, "r4", 300)).admitted
    bench.store.away = False
    await until(lambda: not bench.admission.away)
    assert await used(bench) == 900  # r1 and r4 are open; r3's own settle says what it was

    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await money(bench, "r5", 1)  # a store that comes and goes gives no credit twice
    bench.store.away = False
    await until(lambda: not bench.admission.away)
    assert (await money(bench, "r6", 1)).admitted
    assert bench.admission.on_credit_micro == 0
    bench.store.away = True
    assert (await money(bench, "r7", 1_000)).admitted


async def test_a_process_that_never_reached_the_store_gives_no_credit(bench):
    bench.store.was_reached = False
    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await money(bench, "r1", 1)
