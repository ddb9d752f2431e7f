"""Ship records with prices on into a real PostgreSQL: 5,000 a second or more, and books that add up.

    python -m loadtests.books [records]

Sixteen tenants under every kind of contract, three quarters of the sales shared with a publisher,
every attempt with a cost; synced to disk as PostgreSQL does by default. Afterwards every entry must
sum to zero, the kept sums must be the postings', and postings must be what the records say.
"""

import asyncio
import sys
import time
from typing import Any

from sqlalchemy import func, select

from gateway.controlplane import settle_memory
from gateway.store.credit import Credit, add_credit
from gateway.store.database import Database, open_database
from gateway.store.entries import drifts
from gateway.store.ledger import insert_records
from gateway.store.schema import postings, usage_records
from tests.support.applying import NOW_MS, apply
from tests.support.postgres import serving
from tests.support.records import record

RECORDS = 50_000
BATCH = 2_000
WANTED_S = 5_000
TENANTS = 16
KINDS: list[dict[str, Any]] = [
    {"kind": "payg"},
    {"kind": "prepaid"},
    {"kind": "commitment", "commitment": "1", "overage": "1.25"},
    {"kind": "free"},
]


def document() -> dict[str, Any]:
    price = {"input": "0.10", "cached_input": "0.05", "output": "0.40"}
    shares = [{"publisher": "labs", "percent": "70"}]
    cost = {"input": "0.02", "output": "0.08"}
    return {
        "pools": [{"name": "p", "endpoints": [{"url": "http://10.0.0.5:8000", "cost": cost}]}],
        "publishers": [{"name": "labs"}],
        "models": [
            {"name": f"m{n}", "pool": "p", "price": price, **({"shares": shares} if n else {})}
            for n in range(4)
        ],
        "tenants": [
            {"name": f"t{n}", "contract": KINDS[n % len(KINDS)],
             "projects": [{"name": "p", "keys": [{"name": "k"}]}]}
            for n in range(TENANTS)
        ],
    }  # fmt: skip


def batch(start: int) -> list[Any]:
    return [
        record(
            n,
            tenant_id=n % TENANTS + 1,
            model_id=n % 4 + 1,
            price_id=n % 4 + 1,
            usage={
                "prompt_tokens": n % 4_001,
                "cached_tokens": n % 97,
                "completion_tokens": n % 997,
            },
        )
        for n in range(start, start + BATCH)
    ]


async def run(url: str, records: int) -> tuple[float, list[str]]:
    db = open_database(url, "")
    await db.migrate()
    await apply(db, document())
    async with db.begin() as connection:
        for tenant_id in range(1, TENANTS + 1):
            paid = Credit(
                tenant_id=tenant_id,
                kind="paid",
                amount_nano=10**9,
                currency="USD",
                reference="first",
            )
            await add_credit(connection, paid, NOW_MS)
    took_s = 0.0
    settle_memory()
    for start in range(0, records, BATCH):
        made = batch(start)
        began_s = time.perf_counter()
        await insert_records(db, made)
        took_s += time.perf_counter() - began_s
    wrong = await faults(db, records)
    await db.close()
    return records / took_s, wrong


async def faults(db: Database, records: int) -> list[str]:
    found = []
    async with db.read() as connection:
        off = await connection.execute(
            select(postings.c.entry_key)
            .group_by(postings.c.entry_key, postings.c.currency)
            .having(func.sum(postings.c.nano) != 0)
        )
        found += [f"{key}: does not sum to zero" for (key,) in off]
        found += [f"sums: {each}" for each in await drifts(connection)]
        count, said = (
            await connection.execute(
                select(func.count(), func.sum(usage_records.c.charged_nano)).select_from(
                    usage_records
                )
            )
        ).one()
        posted = await connection.scalar(
            select(func.sum(postings.c.nano)).where(
                postings.c.kind == "use",
                postings.c.account.in_(["customer_prepaid", "receivable", "promotional"]),
            )
        )
    if count != records:
        found.append(f"{count} records of {records}")
    if int(said or 0) != int(posted or 0):
        found.append(f"records say {said}, postings {posted}")
    return found


def main() -> int:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    with serving() as server:
        rate_s, wrong = asyncio.run(run(server.new_url(), records))
    for each in wrong[:10]:
        print(each)
    print(
        f"{records:,} records, {rate_s:,.0f} records/s (wanted {WANTED_S:,}), {len(wrong)} faults"
    )
    return 0 if rate_s >= WANTED_S and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
