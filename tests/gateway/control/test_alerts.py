"""What webhooks are told of: each threshold once a period, each fall of a balance once, each turn of an
endpoint once, over restarts."""

import json

import msgspec
import pytest
from sqlalchemy import select

from gateway.control.alerts import Alerts
from gateway.control.deliveries import Deliveries
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store import credit
from gateway.store import sinks as kept
from gateway.store.ledger import insert_records
from gateway.store.schema import alerts, keys, models, price_versions, projects, tenants
from gateway.wire.fetch import fetch
from routing.signals import EndpointSignals
from tests.gateway.control.test_formats import verify
from tests.support.applying import NOW_MS, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.receiver import receiving
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#: A record has 10 tokens in and 3 out: 13 at 1,000,000 a million is 13 a record.
PRICE = {"input": "1000000", "output": "1000000"}
DAY_MS = 86_400_000


def file(url="http://127.0.0.1:9/in", **webhook):
    return {
        "pools": [{"name": "fra", "endpoints": [{"url": "http://10.0.0.5:8000"}]}],
        "models": [{"name": "llama", "pool": "fra", "price": PRICE}],
        "tenants": [
            {"name": "acme", "contract": {"kind": "prepaid"}, "low_balance": "20",
             "limits": {"budget_per_day": "130"},
             "projects": [{"name": "p", "keys": [
                 {"name": "k", "limits": {"budget_per_month": "1000"}}]}]}
        ],
        "webhooks": [{"name": "pager", "url": url, "secret_env": "PAGER"} | webhook],
    }  # fmt: skip


class World:
    """A database with what it says loaded, and one who looks."""

    def __init__(self, db):
        self.db = db
        self.now_ms = NOW_MS
        self.healthy = None
        self.number = 0
        self.snapshot = Snapshot()
        self.restart()

    def restart(self, owner="host-1"):
        self.alerts = Alerts(
            self.db, self.snapshot, self.signals, owner=owner, unix_ms=lambda: self.now_ms
        )

    def signals(self):
        return {
            endpoint.id: EndpointSignals(endpoint_id=endpoint.id, healthy=self.healthy)
            for pool in self.snapshot.pools.values()
            for endpoint in pool.endpoints
        }

    async def apply(self, document):
        await apply(self.db, document)
        await self.load()

    async def load(self):
        version, moves = await Loader(self.db, lambda: 2**62).full()
        loaded = Snapshot()
        loaded.apply(version, moves)
        self.snapshot.adopt(loaded)

    async def spend(self, records, at_ms=None):
        async with self.db.read() as connection:
            ids = {
                name: await connection.scalar(select(table.c.id))
                for name, table in (("tenant_id", tenants), ("project_id", projects),
                                    ("key_id", keys), ("model_id", models),
                                    ("price_id", price_versions))
            }  # fmt: skip
        ids["started_ms"] = at_ms or self.now_ms
        self.number += records
        numbers = range(self.number - records, self.number)
        await insert_records(self.db, [record(number, **ids) for number in numbers])

    async def credit(self, amount, reference):
        made = credit.Credit(
            tenant_id=1, kind="paid", currency="USD", amount_nano=amount * 10**9, priority=1,
            expires_ms=0, reference=reference,
        )  # fmt: skip
        async with self.db.begin() as connection:
            await credit.add_credit(connection, made, self.now_ms)

    async def told(self, kind):
        """Looks, and gives every alert of a type so far."""
        await self.alerts.look()
        async with self.db.read() as connection:
            texts = await connection.scalars(select(alerts.c.event).order_by(alerts.c.id))
            events = [json.loads(text) for text in texts]
        return [event for event in events if event["type"] == kind]


@pytest.fixture
async def world(db):
    return World(db)


def percents(events):
    return [(each["data"]["scope"], each["data"]["percent"]) for each in events]


async def test_each_threshold_is_told_once_a_period_over_restarts(world):
    await world.apply(file())
    assert await world.told("budget.threshold") == []
    await world.spend(4)
    assert await world.told("budget.threshold") == []
    await world.spend(1)
    (half,) = await world.told("budget.threshold")
    assert half["data"] == {
        "tenant": "acme", "scope": "tenant acme", "window": "day", "period": "2027-01-15",
        "percent": 50, "budget": "130", "spent": "65", "currency": "USD", "enforced": True,
    }  # fmt: skip
    assert (half["subject"], half["id"]) == ("acme", "budget_threshold:t1:day:2027-01-15:50")

    world.restart()
    await world.spend(6)
    assert percents(await world.told("budget.threshold")) == [
        ("tenant acme", 50), ("tenant acme", 80), ("tenant acme", 100),
    ]  # fmt: skip
    world.restart()
    await world.spend(1)
    assert len(await world.told("budget.threshold")) == 3

    world.now_ms += DAY_MS
    await world.spend(5)
    told = await world.told("budget.threshold")
    assert told[3:][0]["data"]["period"] == "2027-01-16"
    assert len(told) == 4


async def test_a_keys_budget_counts_that_key_and_late_records_their_own_day(world):
    await world.apply(file())
    await world.told("budget.threshold")
    await world.spend(40, at_ms=world.now_ms - 2 * DAY_MS)
    told = await world.told("budget.threshold")

    assert percents(told) == [("key acme/p/k", 50)]
    assert told[0]["data"]["spent"] == "520"


async def test_a_low_balance_is_told_once_each_time_it_falls(world):
    await world.apply(file())
    await world.credit(100, "first")
    assert await world.told("balance.low") == []
    await world.spend(6)
    assert await world.told("balance.low") == [], "22 are left"
    await world.spend(1)
    (low,) = await world.told("balance.low")
    assert low["data"] == {"tenant": "acme", "available": "9", "below": "20", "currency": "USD"}

    world.restart()
    await world.spend(1)
    assert len(await world.told("balance.low")) == 1
    await world.credit(100, "second")
    assert len(await world.told("balance.low")) == 1
    await world.spend(8)
    first, second = await world.told("balance.low")
    assert (first["id"], second["id"]) == ("balance_low:1:1", "balance_low:1:2")


async def test_an_endpoint_is_told_of_when_it_goes_and_comes(world):
    await world.apply(file())
    world.healthy = True
    assert await world.told("endpoint.up") == [], "it was never down"
    world.healthy = False
    (down,) = await world.told("endpoint.down")
    assert down["data"] == {"endpoint": "http://10.0.0.5:8000", "pool": "fra"}
    world.restart()
    assert len(await world.told("endpoint.down")) == 1
    world.healthy = None
    assert await world.told("endpoint.up") == [], "nobody knows"
    world.healthy = True
    (up,) = await world.told("endpoint.up")
    world.healthy = False
    assert [each["id"] for each in await world.told("endpoint.down")] == [
        "endpoint_down:1:1", "endpoint_down:1:2",
    ]  # fmt: skip
    assert up["id"] == "endpoint_up:1:1"


async def test_of_two_hosts_one_looks_and_nothing_is_told_where_nobody_listens(world):
    await world.apply(file() | {"webhooks": []})
    world.healthy = False
    assert await world.told("endpoint.down") == []
    await world.apply({"webhooks": file()["webhooks"]})
    first = world.alerts
    world.restart("host-2")
    assert len(await world.told("endpoint.down")) == 1
    world.healthy = True
    await first.look()
    assert len(await world.told("endpoint.up")) == 1


async def test_an_alert_is_delivered_signed_and_under_its_own_id(world):
    answers = iter([500, "cut"])
    async with receiving(lambda _: next(answers, 204)) as receiver:
        await world.apply(file(receiver.url, events=["endpoint.down"]))
        await world.credit(1, "first")
        world.healthy = False
        await world.told("endpoint.down")
        sender = Deliveries(
            world.db, fetch, owner="host-1", environ={"PAGER": SECRET},
            unix_ms=lambda: world.now_ms, chance=lambda: 0.0,
        )  # fmt: skip
        async with world.db.read() as connection:
            (sink,) = await kept.read_sinks(connection)
        for _ in range(4):
            await sender.deliver(sink.id)
            world.now_ms += 10_000

        assert len(receiver.requests) == 3, "a failure, an answer that was lost, and an answer"
        for request in receiver.requests:
            assert verify(SECRET, request.headers, request.body)
            assert request.headers["webhook-id"] == "endpoint_down:1:1"
        assert len({request.body for request in receiver.requests}) == 1
        times = {request.headers["webhook-timestamp"] for request in receiver.requests}
        assert len(times) == 3, "each attempt is signed at its own time"
        said = receiver.kept[-1].json
        assert (said["type"], said["data"]["pool"]) == ("endpoint.down", "fra")
        assert msgspec.json.encode(said) == receiver.kept[-1].body
