"""How fast usage is told over five million records: developers' and operators' questions, p95.

    python -m loadtests.usage [--records N] [--database sqlite|postgresql] [--rounds N]

The whole way of a question but its HTTP: names, sums, pages, JSON. Wanted: each kind of question
under 300 ms at the 95th percentile, and sums that are the ledger's.
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway.control.usages import Usages
from gateway.link.messages import Read
from gateway.store.database import Database, open_database
from gateway.store.rollups import HOUR_MS, differences
from loadtests.ledger_rows import DAY_MS, DAYS, FIRST_MS, fill
from tests.support.postgres import serving

WANTED_MS = 300
PERCENTILE = 0.95
Question = Callable[[random.Random], Awaitable[object]]


def day(number: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime((FIRST_MS + number * DAY_MS) / 1000))


def questions(usages: Usages) -> dict[str, Question]:
    """Each with a chance of its own: other projects, other days."""

    def developer(days: int, **query: str) -> Question:
        def ask(chance: random.Random) -> Awaitable[object]:
            project = chance.randrange(200) + 1
            begun = chance.randrange(DAYS - days)
            times = {"from": day(begun), "to": day(begun + days)} if days < DAYS - 1 else {}
            return usages.look(Read("/v1/usage", times | query, 1, project, 1))

        return ask

    def operator(days: int, **query: str) -> Question:
        def ask(chance: random.Random) -> Awaitable[object]:
            begun = chance.randrange(DAYS - days)
            times = {"from": day(begun), "to": day(begun + days)} if days < DAYS - 1 else {}
            named = {"tenant": f"t{chance.randrange(100)}"} if "tenant" in query else {}
            return usages.of_operator(times | query | named)

        return ask

    def to_this_hour(days: int, **query: str) -> Question:
        """As a dashboard asks: neither end is a day's."""

        def ask(chance: random.Random) -> Awaitable[object]:
            begun = chance.randrange(DAYS - days)
            hour = f"T{chance.randrange(1, 24):02}:00:00Z"
            return usages.of_operator(
                {"from": day(begun) + hour, "to": day(begun + days) + hour} | query
            )

        return ask

    def next_page(**query: str) -> Question:
        """Somewhere in the middle of everything."""

        async def ask(chance: random.Random) -> object:
            at = FIRST_MS // HOUR_MS + chance.randrange(DAYS * 24)
            groups = query["by"].count(",") + 1
            cursor = ".".join([str(at), *["0"] * (groups - 1), "USD"])
            return await usages.of_operator(query | {"cursor": cursor})

        return ask

    return {
        "developer: 30 days by day": developer(30, by="day"),
        "developer: all by key and model": developer(89, by="key,model"),
        "developer: 7 days by hour": developer(7, by="hour", limit="200"),
        "developer: a day by key, model, hour": developer(1, by="key,model,hour"),
        "developer: all by hour, the largest page": developer(89, by="hour", limit="1000"),
        "operator: all by day": operator(89, by="day"),
        "operator: all by tenant": operator(89, by="tenant"),
        "operator: 30 days by model and day": operator(30, by="model,day"),
        "operator: all by key": operator(89, by="key"),
        "operator: a day by hour": operator(1, by="hour"),
        "operator: a day by key and hour, a page": operator(1, by="key,hour"),
        "operator: a tenant's 30 days by hour": operator(30, by="hour", tenant="any"),
        "operator: all by hour, a page": operator(89, by="hour"),
        "operator: all by key and hour, a page": operator(89, by="key,hour"),
        "operator: the same from the middle on": next_page(by="key,hour"),
        "operator: all by tenant, model, day, a page": operator(89, by="tenant,model,day"),
        "operator: 1 day to this hour by tenant": to_this_hour(1, by="tenant"),
        "operator: 60 days to this hour by key": to_this_hour(60, by="key"),
    }


async def measure(db: Database, rounds: int) -> bool:
    async def nothing_waits() -> None:
        pass

    asked = questions(Usages(db, nothing_waits))
    chance = random.Random(7)
    took: dict[str, list[float]] = {name: [] for name in asked}
    gc.collect()
    gc.freeze()  # as the control process does
    for _ in range(rounds):
        for name, ask in asked.items():
            begun_s = time.perf_counter()
            msgspec.json.encode(await ask(chance))
            took[name].append((time.perf_counter() - begun_s) * 1000)
    worst = 0.0
    for name, each in took.items():
        each.sort()
        p95 = each[min(len(each) - 1, int(len(each) * PERCENTILE))]
        worst = max(worst, p95)
        print(f"{name:42} p50 {each[len(each) // 2]:7.1f} ms   p95 {p95:7.1f} ms")
    everything = sorted(ms for each in took.values() for ms in each)
    print(f"all questions: p95 {everything[int(len(everything) * PERCENTILE)]:.1f} ms")
    return worst < WANTED_MS


async def run(url: str | None, folder: Path, asked: Any) -> int:
    db = open_database(url, folder)
    await fill(db, asked.records)
    fast = await measure(db, asked.rounds)
    if asked.no_compare:
        await db.close()
        return int(not fast)
    begun_s = time.monotonic()
    wrong = await differences(db)
    print(
        f"{len(wrong)} sums differ from the ledger (compared in {time.monotonic() - begun_s:.0f} s)"
    )
    await db.close()
    return int(bool(wrong) or not fast)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000_000, metavar="N")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--no-compare", action="store_true", help="do not look at every record")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="usage") as folder:
        if asked.database == "sqlite":
            sys.exit(asyncio.run(run(None, Path(folder), asked)))
        with serving() as server:
            sys.exit(asyncio.run(run(server.new_url(), Path(folder), asked)))


if __name__ == "__main__":
    main()
