"""Money is counted from SQL once an epoch, after everybody held again and everything shipped."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.control.balances import Balances, no_balances
from gateway.link.messages import BalancesAnswer, BalancesAsked, Hello, Reheld, Rehold
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.terms import Calendars, terms_of
from quotas.limits import Limit
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]
DOCUMENT: dict[str, Any] = {
    **FULL,
    "tenants": [
        {
            "name": "acme",
            "limits": {"budget_lifetime": "5.00", "requests_per_minute": 9},
            "projects": [
                {
                    "name": "bot",
                    "keys": [
                        {
                            "name": "ci",
                            "limits": {
                                "budget_per_day": "1.00",
                                "models": {"llama": {"budget_lifetime": "2.00"}},
                                "end_user": {"budget_per_day": "0.10"},
                            },
                        }
                    ],
                }
            ],
        }
    ],
}


def money_limits(snapshot: Snapshot) -> tuple[Limit, ...]:
    """Those of the key, as its requests for the model are held to, an end user's included."""
    principal, model = snapshot.principal(1), snapshot.models[1]
    assert principal is not None
    limits = terms_of(principal, model, Calendars(), snapshot.platform).for_user("ab").limits
    return tuple(each for each in limits if each.dimension == "money")


class Peer:
    hello = Hello(0, 1, 1)


class Link:
    def __init__(self, *peers: Peer, deaf: bool = False) -> None:
        self.peers = set(peers)
        self.deaf = deaf
        self.told: list[Rehold] = []
        self.balances: Balances | None = None

    def broadcast(self, kind: str, body: bytes) -> None:
        assert kind == "rehold"
        wanted = msgspec.msgpack.decode(body, type=Rehold)
        self.told.append(wanted)
        assert self.balances is not None
        for peer in () if self.deaf else self.peers:
            answer = msgspec.msgpack.encode(Reheld(wanted.number))
            asyncio.get_running_loop().call_soon(self.balances.on_reheld, peer, answer)


class Bench:
    """Steps are noted in the order they are taken."""

    def __init__(self, db: Database, snapshot: Snapshot, link: Link) -> None:
        self.steps: list[str] = []
        self.snapshot = snapshot
        self.link = link
        link.balances = self.balances = Balances(
            db,
            snapshot,
            link,  # type: ignore[arg-type]
            ship=self._ship,
            unsettled=lambda tag: (f"owed to {tag}",),
            levels=no_balances,
        )

    async def _ship(self) -> None:
        self.steps.append(f"shipped after {len(self.link.told)} reholds")

    async def ask(self, epoch: str = "e1") -> BalancesAnswer:
        limits = money_limits(self.snapshot)
        question = msgspec.msgpack.encode(BalancesAsked(1, "t1", epoch, limits))
        said = await self.balances.on_asked(Peer(), question)  # type: ignore[arg-type]
        return msgspec.msgpack.decode(said, type=BalancesAnswer)


async def bench_on(db: Database, link: Link) -> Bench:
    await apply(db, DOCUMENT)
    snapshot = Snapshot()
    snapshot.apply(*await Loader(db, lambda: 2**62).full())
    return Bench(db, snapshot, link)


@pytest.fixture
async def bench(db: Database) -> Bench:
    return await bench_on(db, Link(Peer()))


async def test_every_budget_that_sql_knows_is_counted_from_it(db: Database, bench: Bench) -> None:
    billed = {"input": 1_000_000, "cached_input": 0, "output": 1_000_000}  # 0.10 + 0.40
    usage = {"prompt_tokens": 1_000_000, "cached_tokens": 0, "completion_tokens": 1_000_000}
    await insert_records(db, [record(1, started_ms=1_000, billed=billed, usage=usage)])
    answer = await bench.ask()

    assert [(each.limit.scope, each.limit.window, each.level) for each in answer.seeds] == [
        ("t1", "lifetime", 500_000),
        ("k1", "day", 0),  # that record is of 1970
        ("k1m1", "lifetime", 500_000),
        ("k1uab", "day", 0),
    ]
    assert answer.seeds[0].period_id == "life"
    assert answer.counted == ("owed to t1",)


async def test_open_requests_are_held_again_before_anything_is_counted(bench: Bench) -> None:
    await bench.ask()
    assert bench.link.told == [Rehold(1, {"t1": "e1"})]
    assert bench.steps == ["shipped after 1 reholds"]


async def test_one_count_an_epoch_and_another_after_a_loss(bench: Bench) -> None:
    assert not (await bench.ask()).counted_before
    assert (await bench.ask()).counted_before
    assert not (await bench.ask("e2")).counted_before


async def test_a_process_that_does_not_answer_is_not_waited_for_long(db: Database) -> None:
    bench = await bench_on(db, Link(Peer(), deaf=True))
    async with asyncio.timeout(5):
        assert (await bench.ask()).seeds


async def test_a_tenant_that_is_gone_has_nothing(bench: Bench) -> None:
    question = msgspec.msgpack.encode(BalancesAsked(9, "t9", "e1", money_limits(bench.snapshot)))
    said = await bench.balances.on_asked(Peer(), question)  # type: ignore[arg-type]
    assert msgspec.msgpack.decode(said, type=BalancesAnswer).seeds == ()


async def test_whoever_asks_during_a_count_is_counted_in_the_next_one_together(
    bench: Bench,
) -> None:
    first = asyncio.create_task(bench.ask("e1"))
    await asyncio.sleep(0)
    others = [asyncio.create_task(bench.ask(f"e{n}")) for n in (2, 3)]
    answers = await asyncio.gather(first, *others)

    assert [answer.counted_before for answer in answers] == [False, False, False]
    assert len(bench.steps) == 2
    assert [told.epochs for told in bench.link.told] == [{"t1": "e1"}, {"t1": "e3"}]


async def test_a_count_that_failed_is_made_again_from_the_beginning(bench: Bench) -> None:
    ship, bench.balances._ship = bench.balances._ship, _fail
    asks = [asyncio.create_task(bench.ask()) for _ in range(2)]
    failures = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(each) for each in failures] == [OSError, OSError]
    bench.balances._ship = ship

    answer = await bench.ask()

    assert answer.seeds
    assert answer.counted == ("owed to t1",)
    assert [told.number for told in bench.link.told] == [1, 2, 3]


async def _fail() -> None:
    raise OSError
