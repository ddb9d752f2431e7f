"""Balances in the store follow SQL's: a credit at once and once, the rest when they are compared."""

from typing import Any

import msgspec
import pytest

from gateway.control.purses import Move, Purses
from gateway.link.messages import Credited
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.corrections import reprice_record, reverse_record
from gateway.store.credit import add_credit, levels_micro, reverse_credit
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.open_requests import note
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.ports import Seed
from quotas.store.memory import MemoryStore
from tests.gateway.store.test_books import COST, _credit, document, use
from tests.support.applying import NOW_MS, apply
from tests.support.databases import db

__all__ = ["db"]
MICRO = COST // 1_000
DEARER = {"input": "2", "output": "8"}


@pytest.fixture
def database_url() -> None:
    """SQLite: what is read of SQL is proven on both in tests/gateway/store."""


class Link:
    def __init__(self) -> None:
        self.told: list[Credited] = []

    def broadcast(self, kind: str, body: bytes) -> None:
        assert kind == "credited"
        self.told.append(msgspec.msgpack.decode(body, type=Credited))


class Bench:
    """A prepaid tenant with three requests' worth, known to a store."""

    def __init__(self, db: Database, snapshot: Snapshot, **options: Any) -> None:
        self.db = db
        self.store = MemoryStore()
        self.link = Link()
        self.unsettled: tuple[str, ...] = ()
        (self.limit,) = (each for each in snapshot.tenants[1].limits if each.algorithm == "balance")
        values: dict[str, Any] = {"store": self.store} | options
        self.purses = Purses(
            db,
            snapshot,
            self.link,  # type: ignore[arg-type]
            values["store"],
            ship=self._ship,
            unsettled=lambda _tag: self.unsettled,
            host="one",
        )

    async def _ship(self) -> None:
        pass

    async def level(self) -> int | None:
        (gauge,) = (await self.store.inspect("t1", (Charge(self.limit, 0),))).gauges
        return gauge.balance


async def bench(db: Database, **options: Any) -> Bench:
    await apply(db, document({"kind": "prepaid"}))
    async with db.begin() as connection:
        await add_credit(connection, _credit("paid", 3 * COST), NOW_MS)
    snapshot = Snapshot()
    snapshot.apply(*await Loader(db, lambda: 2**62).full())
    made = Bench(db, snapshot, **options)
    async with db.read() as connection:
        level, counted = (await levels_micro(connection, [1], NOW_MS + 1))[1]
    epoch = await made.store.epoch("t1")
    assert await made.store.seed("t1", epoch, (Seed(made.limit, level),), counted)
    return made


async def test_a_prepaid_contract_is_a_balance_without_a_credit_line(db: Database) -> None:
    made = await bench(db)

    assert isinstance(made.limit, Limit)
    assert (made.limit.capacity, made.limit.dimension, made.limit.window) == (0, "money", "now")
    assert await made.level() == 3 * MICRO


async def test_a_credit_moves_the_balance_once(db: Database) -> None:
    made = await bench(db)
    for _ in range(3):
        await made.purses.credited([Move(1, "topup:1:again", 2 * COST, "USD")])

    assert await made.level() == 5 * MICRO


async def test_a_credit_that_the_count_included_moves_nothing(db: Database) -> None:
    made = await bench(db)
    await made.purses.credited([Move(1, "topup:1:ref-paid", 3 * COST, "USD")])

    assert await made.level() == 3 * MICRO


async def test_a_credit_in_another_currency_fills_another_purse(db: Database) -> None:
    made = await bench(db)
    await made.purses.credited([Move(1, "topup:1:again", 2 * COST, "EUR")])

    assert await made.level() == 3 * MICRO


async def test_a_correction_that_was_never_handed_over_is_and_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: (NOW_MS + 5_000) * 10**6)
    made = await bench(db)
    epoch = await made.store.epoch("t1")
    await insert_records(db, [use(1), use(2)])
    await made.store.adjust("t1", epoch, "their settles", made.limit, -2 * MICRO)
    await apply(db, document({"kind": "prepaid"}, model={"price": DEARER}), NOW_MS + 8)
    async with db.begin() as connection:  # and the process was killed
        await reverse_record(connection, use(1)[1].request_id, NOW_MS + 9)
        await reprice_record(connection, use(2)[1].request_id, 2, NOW_MS + 9)
    for _ in range(2):
        await made.purses.catch_up()

    async with db.read() as connection:
        level, counted = (await levels_micro(connection, [1], NOW_MS + 10))[1]
    assert await made.level() == level == 1 * MICRO  # 3 paid, 1 given back, 1 at twice its price
    assert await made.purses.compare() == {1: 0}
    assert await made.store.seed("t1", epoch, (Seed(made.limit, level),), counted)
    await made.purses.catch_up()
    assert await made.level() == level, "a count from SQL includes them"


async def test_a_grant_whose_time_is_over_cannot_be_spent_from_the_store(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [NOW_MS + 5_000]
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: clock[0] * 10**6)
    made = await bench(db)
    short = msgspec.structs.replace(
        _credit("promotional", 2 * COST), reference="short", expires_ms=NOW_MS + 9_000
    )
    async with db.begin() as connection:
        await add_credit(connection, short, NOW_MS + 9)
    await made.purses.catch_up()
    await made.purses.end_grants()
    assert await made.level() == 5 * MICRO

    clock[0] = NOW_MS + 9_000
    for _ in range(2):
        await made.purses.end_grants()
    await made.purses.catch_up()
    assert await made.level() == 3 * MICRO
    async with db.read() as connection:
        level, counted = (await levels_micro(connection, [1], clock[0]))[1]
    assert level == 3 * MICRO
    epoch = await made.store.epoch("t1")
    assert await made.store.seed("t1", epoch, (Seed(made.limit, level),), counted)
    await made.purses.catch_up()
    assert await made.level() == level, "a count from SQL includes it"
    assert await made.purses.compare() == {1: 0}


async def test_credits_that_were_never_handed_over_are_and_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: (NOW_MS + 5_000) * 10**6)
    made = await bench(db)
    async with db.begin() as connection:  # and the process was killed
        again = msgspec.structs.replace(_credit("paid", 2 * COST), reference="again")
        await add_credit(connection, again, NOW_MS + 9)
    for _ in range(2):
        await made.purses.catch_up()
    assert await made.level() == 5 * MICRO

    async with db.begin() as connection:
        await reverse_credit(connection, 1, "again", NOW_MS + 10)
    assert await made.purses.compare() == {1: 0}  # not put right as a drift, and then once more
    await made.purses.catch_up()
    assert (await made.level(), made.purses.corrected) == (3 * MICRO, 0)


async def test_a_store_that_is_away_is_told_of_credits_later(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: (NOW_MS + 5_000) * 10**6)
    made = await bench(db)
    await made.purses.catch_up()
    assert not made.purses.behind

    async def away(_tag: str) -> str:
        raise StoreUnavailable("away")

    async with db.begin() as connection:
        again = msgspec.structs.replace(_credit("paid", 2 * COST), reference="again")
        await add_credit(connection, again, NOW_MS + 9)
    with monkeypatch.context() as outage:
        outage.setattr(made.store, "epoch", away)
        await made.purses.credited([Move(1, "topup:1:again", 2 * COST, "USD")])
    assert made.purses.behind
    await made.purses.catch_up()

    assert (await made.level(), made.purses.behind) == (5 * MICRO, False)


async def test_processes_with_stores_of_their_own_are_told(db: Database) -> None:
    made = await bench(db, store=None)
    await made.purses.credited([Move(1, "topup:1:again", 2 * COST, "USD"), Move(99, "x", 1, "USD")])

    assert [(said.tag, said.adjustment_id, said.delta_micro) for said in made.link.told] == [
        ("t1", "topup:1:again", 2 * MICRO)
    ]


async def test_a_store_that_lost_a_charge_is_found_and_put_right(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: (NOW_MS + 5_000) * 10**6)
    made = await bench(db)
    assert await made.purses.compare() == {1: 0}
    await insert_records(db, [use(1)])  # its settle never reached the store

    assert await made.purses.compare() == {1: -MICRO}
    assert await made.level() == 2 * MICRO
    assert await made.purses.compare() == {1: 0}
    assert made.purses.corrected == 1


@pytest.mark.parametrize(("host", "left"), [("one", 3 * MICRO), ("two", 3 * MICRO - 7)])
async def test_what_the_store_lacks_comes_back_where_no_other_host_may_owe_it(
    db: Database, monkeypatch: pytest.MonkeyPatch, host: str, left: int
) -> None:
    monkeypatch.setattr("gateway.control.purses.time.time_ns", lambda: (NOW_MS + 5_000) * 10**6)
    made = await bench(db)
    await note(db, host)
    epoch = await made.store.epoch("t1")
    await made.store.adjust("t1", epoch, "lost", made.limit, -7)

    assert await made.purses.compare() == {1: 7}
    assert await made.level() == left


async def test_a_balance_in_motion_is_left_alone(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.purses.TRY_AGAIN_S", 0)
    made = await bench(db)
    made.unsettled = ("r1",)

    assert await made.purses.compare() == {}
