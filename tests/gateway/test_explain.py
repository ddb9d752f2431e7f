"""What a request would get, what a key may see of itself."""

import pytest

from gateway.contract.errors import StoreAway, TooManyReads
from gateway.explain import LOOKS_PER_KEY_MAX, Asked, Explainer, name_of
from gateway.leases import Leases
from gateway.refusals import Refusal, Refusals
from gateway.snapshot import (
    KeyDoc,
    ModelDoc,
    Move,
    PlatformDoc,
    ProjectDoc,
    Snapshot,
    TenantDoc,
    encode_doc,
)
from gateway.telemetry.counters import Counters
from quotas.calendar import periods_at
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.store.memory import MemoryStore
from tests.support.limits import bucket, slots

NOW_MS = 1_800_000_000_000
DAY = Limit("t1", "tenant acme", "tokens", "quota", 9000, 0, 1, "day")
RATE = bucket("k3", "tokens", capacity=1000, per_minute=1000)
OF_MODEL = bucket("k3m7", "requests", capacity=5, per_minute=5)
HIDDEN = bucket("k3m8", "requests", capacity=5, per_minute=5)


def documents():
    key = KeyDoc(
        id=3, project_id=2, name="ci", path="acme/bot/ci", secrets=(), models=("llama",),
        limits=(RATE, slots("k3")), model_limits={7: (OF_MODEL,), 8: (HIDDEN,)},
    )  # fmt: skip
    yield Move("tenant", 1, encode_doc(TenantDoc(id=1, name="acme", limits=(DAY,))))
    yield Move("project", 2, encode_doc(ProjectDoc(id=2, tenant_id=1, name="bot")))
    yield Move("key", 3, encode_doc(key))
    for model_id, name in ((7, "llama"), (8, "secret")):
        model = ModelDoc(id=model_id, name=name, upstream=name, pool_id=1)
        yield Move("model", model_id, encode_doc(model))


class Bench:
    def __init__(self):
        self.snapshot = Snapshot()
        self.snapshot.apply(1, documents())
        self.store = MemoryStore(lambda: NOW_MS)
        self.refusals = Refusals()
        self.leases = Leases(
            self.store, Counters(), name="p", processes=lambda: 1, monotonic=lambda: 0.0
        )
        self.explainer = Explainer(
            self.snapshot, self.store, self.refusals, self.leases, lambda: NOW_MS
        )
        self.principal = self.snapshot.principal(3)

    async def hold(self, tokens):
        periods = periods_at("day", NOW_MS)
        charges = (Charge(DAY, tokens, periods), Charge(RATE, tokens), Charge(slots("k3"), 1))
        assert (await self.store.reserve("t1", "r1", charges, 60)).admitted


@pytest.fixture
def bench():
    return Bench()


def by_name(said):
    return {(each["scope"], each["name"]): each for each in said["limits"]}


async def test_every_limit_is_shown_with_its_level_and_holders(bench):
    await bench.hold(400)
    said = await bench.explainer.explain(3, 7, Asked(300, 200))

    limits = by_name(said)
    assert said["verdict"] == {"admitted": True}
    rate = limits["scope k3", "tokens per minute"]
    assert (rate["limit"], rate["used"], rate["requested"]) == (1000, 400, 500)
    day = limits["tenant acme", "tokens per day"]
    assert (day["held"], day["remaining"]) == (400, 8600)
    assert limits["scope k3", "concurrent requests"]["holders"][0]["holds"] == 1
    assert ("scope k3m7", "requests per minute") in limits
    assert ("scope k3m8", "requests per minute") not in limits


async def test_a_refusal_to_come_names_the_binding_limit_and_the_wait(bench):
    await bench.hold(400)
    said = await bench.explainer.explain(3, 7, Asked(500, 200))

    assert said["verdict"] == {
        "admitted": False,
        "reason": "rate",
        "binding": "scope k3: tokens per minute",
        "retry_after_ms": 6_000,
    }


async def test_explaining_changes_nothing(bench):
    before = await bench.explainer.explain(3, 7, Asked(500, 200))
    assert await bench.explainer.explain(3, 7, Asked(500, 200)) == before


async def test_a_key_sees_what_all_tenants_share_of_the_models_that_it_may_use(bench):
    everybodys = bucket("A", "requests", capacity=50, per_minute=50)
    of_pool = bucket("G1", "tokens", capacity=70, per_minute=70)
    of_secret = bucket("M8", "tokens", capacity=90, per_minute=90)
    platform = PlatformDoc(
        limits=(everybodys,), pool_limits={1: (of_pool,)}, model_limits={8: (of_secret,)}
    )
    bench.snapshot.apply(2, [Move("platform", platform.id, encode_doc(platform))])
    taken = (Charge(bench.snapshot.platform.limits[0], 20),)
    assert (await bench.store.reserve("A", "lease", taken, 60)).admitted

    said = await bench.explainer.look(bench.principal)

    limits = by_name(said)
    platforms = limits["scope A", "requests per minute"]
    assert (platforms["remaining"], platforms["model"]) == (30, None)
    assert limits["scope G1", "tokens per minute"]["model"] == "llama"
    assert ("scope M8", "tokens per minute") not in limits
    assert all("holders" not in each and "leases" not in each for each in said["limits"])


async def test_unknown_rows_are_not_explained(bench):
    assert await bench.explainer.explain(9, 7, Asked(1, 1)) is None
    assert await bench.explainer.explain(3, 9, Asked(1, 1)) is None


async def test_a_key_sees_its_own_limits_and_refusals_and_no_processes(bench):
    bench.refusals.note(
        3,
        Refusal(
            at_ms=5, model="llama", scope="tenant acme", dimension="money", window="day",
            limit=2_000_000, used=2_000_000, requested=1, retry_after_ms=-1, reason="balance_spent",
        ),
    )  # fmt: skip
    await bench.hold(400)
    said = await bench.explainer.look(bench.principal)

    assert (said["object"], said["path"], said["models"]) == ("key", "acme/bot/ci", ["llama"])
    limits = by_name(said)
    assert limits["tenant acme", "tokens per day"]["remaining"] == 8600
    assert limits["scope k3m7", "requests per minute"]["model"] == "llama"
    assert ("scope k3m8", "requests per minute") not in limits
    assert all("holders" not in each for each in said["limits"])
    assert said["refusals"][0]["limit"] == "2.00"


class Away:
    name = "away"

    async def inspect(self, tag, charges):
        raise StoreUnavailable


async def test_a_store_that_is_away_and_a_key_that_asks_too_much_are_refused(bench):
    explainer = Explainer(bench.snapshot, Away(), bench.refusals, bench.leases, lambda: NOW_MS)
    with pytest.raises(StoreAway):
        await explainer.look(bench.principal)
    explainer._looking[3] = LOOKS_PER_KEY_MAX
    with pytest.raises(TooManyReads):
        await explainer.look(bench.principal)


def test_a_limit_has_a_name_that_people_use():
    assert name_of(RATE) == "tokens per minute"
    assert name_of(slots("k1")) == "concurrent requests"
    lifetime = Limit("k1", "key", "money", "quota", 1, 0, 1, "lifetime")
    assert name_of(lifetime) == "money in all"
