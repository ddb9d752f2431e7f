"""What was dated in advance begins by itself, at its moment and not before, and can be taken back."""

from typing import Any

import pytest

from gateway.control.almanac import Almanac
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.database import Database
from tests.gateway.store.test_books import document
from tests.support.applying import NOW_MS, apply
from tests.support.databases import db

__all__ = ["db"]
HOUR_MS = 3_600_000
#: 2027-01-15T08:00 is NOW_MS.
NINE, TEN = "2027-01-15T09:00", "2027-01-15T10:00"


@pytest.fixture
def database_url() -> None:
    """SQLite: what is planned is proven on both in tests/gateway/store."""


class Bench:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.now_ms = NOW_MS
        self.told = 0
        self.snapshot = Snapshot()
        self.loader = Loader(db, lambda: self.now_ms)
        self.almanac = Almanac(db, self._changed, lambda: self.now_ms)

    async def _changed(self) -> None:
        self.told += 1

    async def say(self, price: dict[str, Any], contract: dict[str, Any] | None = None) -> Any:
        wanted = document(contract, model={"price": {"currency": "USD"} | price})
        return await apply(self.db, wanted, self.now_ms)

    async def at(self, minutes: int) -> tuple[int | None, bool]:
        """(what input costs, whether the tenant pays) once the moment has come."""
        self.now_ms = NOW_MS + minutes * 60_000
        await self.almanac.turn()
        found = await self.loader.since(self.snapshot.version)
        assert found is not None
        self.snapshot.apply(*found)
        price = self.snapshot.models[1].price
        return price and price.nano["input"], self.snapshot.tenants[1].pays


async def test_a_price_and_a_contract_begin_at_their_moment(db: Database) -> None:
    bench = Bench(db)
    await bench.say({"input": "1"}, {"kind": "free"})
    again = {"input": "2", "from": NINE}, {"kind": "payg", "from": TEN}
    assert (await bench.say(*again)).updated
    assert not (await bench.say(*again)).updated, "it is planned already"

    assert await bench.at(59) == (10**9, False)
    assert bench.told == 0
    assert await bench.at(60) == (2 * 10**9, False)
    assert await bench.at(120) == (2 * 10**9, True)
    assert bench.told == 2
    assert not (await bench.say(*again)).updated, "it is so already"
    assert await bench.at(121) == (2 * 10**9, True)
    assert bench.told == 2


async def test_a_first_price_may_be_of_later(db: Database) -> None:
    bench = Bench(db)
    await bench.say({"input": "1", "from": NINE})

    assert await bench.at(1) == (None, False)
    assert await bench.at(61) == (10**9, False)


@pytest.mark.parametrize(
    ("then", "at_nine", "at_ten"),
    [
        ({"input": "1"}, 1, 1),  # what was planned is taken back
        ({"input": "3"}, 3, 3),
        ({"input": "2", "from": TEN}, 1, 2),
        ({"input": "4", "from": NINE}, 4, 4),
    ],
)
async def test_what_is_said_last_holds(
    db: Database, then: dict[str, Any], at_nine: int, at_ten: int
) -> None:
    bench = Bench(db)
    contract = {"kind": "payg", "from": NINE}
    await bench.say({"input": "1"}, {"kind": "free"})
    await bench.say({"input": "2", "from": NINE}, contract)
    await bench.say(then, {"kind": "payg", "from": then.get("from", NINE)})

    assert await bench.at(61) == (at_nine * 10**9, then.get("from") != TEN)
    assert await bench.at(121) == (at_ten * 10**9, True)


async def test_a_tier_that_is_left_out_ends_when_the_new_price_begins(db: Database) -> None:
    bench = Bench(db)
    await bench.say({"input": "1", "tiers": {"flex": "0.5"}})
    await bench.say({"input": "1", "tiers": {"priority": "2"}, "from": NINE})

    await bench.at(59)
    assert list(bench.snapshot.models[1].tiers) == ["flex"]
    await bench.at(60)
    assert list(bench.snapshot.models[1].tiers) == ["priority"]


async def test_a_clock_that_was_set_back_takes_nothing_back(db: Database) -> None:
    bench = Bench(db)
    await bench.say({"input": "1"})
    await bench.say({"input": "2", "from": NINE})
    await bench.at(60)
    bench.now_ms = NOW_MS

    assert not await bench.almanac.turn()
    bench.now_ms = NOW_MS + HOUR_MS + 1
    assert not await bench.almanac.turn()
