"""Reserved throughput over the admin API: asked for, sold, used, idle, ended."""

from typing import Any

import pytest

from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from tests.gateway.control.test_app import Desk, desk
from tests.gateway.control.test_money import get
from tests.gateway.store.test_books import document, use
from tests.support.applying import apply
from tests.support.databases import db

__all__ = ["db", "desk"]
TERMS = "tenants/acme/throughput"
ASKED = {
    "model": "llama", "tokens_per_minute": 3_000, "price_per_hour": "1", "until": "2999-01-01",
}  # fmt: skip


@pytest.fixture
def database_url() -> None:
    """SQLite: what terms leave in the books is proven on both in tests/gateway/store."""


async def known(db: Database) -> Any:
    snapshot = Snapshot()
    snapshot.apply(*await Loader(db, lambda: 2**62).full())
    return snapshot.tenants[1].throughput


async def test_it_is_sold_when_it_is_accepted_and_shows_what_is_idle(
    desk: Desk, db: Database
) -> None:
    await apply(db, document({"kind": "payg"}))
    asked = await desk.post(TERMS, ASKED, 201)
    assert asked["state"] == "asked"
    assert await known(db) == {}, "nothing is guaranteed that was not accepted"
    sold = await desk.post(f"throughput/{asked['id']}/accept", {}, 200)
    await insert_records(db, [use(1, started_ms=sold["accepted_ms"], reserved=True)])

    (shown,) = (await get(desk, TERMS))["data"]
    assert (await get(desk, "tenants/acme/contract"))["throughput"] == [shown]
    assert (shown["state"], shown["used_tokens"]) == ("accepted", 2_000)
    assert shown["idle_tokens"] == shown["sold_tokens"] - 2_000
    assert (await get(desk, f"{TERMS}?month=2020-01"))["data"][0]["sold_tokens"] == 0
    await desk.post(f"throughput/{asked['id']}/accept", {}, 409)
    await desk.post(f"throughput/{asked['id']}/end", {}, 200)
    await desk.post(f"throughput/{asked['id']}/end", {}, 409)
    assert (await get(desk, TERMS))["data"][0]["state"] == "ended"


async def test_data_processes_know_the_bucket_that_was_sold(desk: Desk, db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    asked = await desk.post(TERMS, ASKED | {"overflow": "reject"}, 201)
    sold = await desk.post(f"throughput/{asked['id']}/accept", {}, 200)

    (held,) = (await known(db)).values()
    assert (held.limit.scope, held.limit.capacity, held.limit.per_minute) == (
        "t1m1r1",
        3_000,
        3_000,
    )
    assert held.limit.scope_name == "reserved throughput of tenant acme on model llama"
    assert (held.spills, held.from_ms) == (False, sold["accepted_ms"])
    assert held.holds(held.from_ms)
    assert not held.holds(held.until_ms)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "none"}, 404, "no model none"),
        ({"until": "2020-01-01"}, 400, "until"),
        ({"tokens_per_minute": 0}, 400, "tokens_per_minute"),
        ({"overflow": "drop"}, 400, "overflow"),
        ({"price_per_hour": "-1"}, 400, "price_per_hour"),
    ],
)
async def test_what_cannot_be_sold_is_refused_with_a_sentence(
    desk: Desk, db: Database, body: dict[str, Any], status: int, said: str
) -> None:
    await apply(db, document({"kind": "payg"}))

    assert said in (await desk.post(TERMS, ASKED | body, status))["detail"]
