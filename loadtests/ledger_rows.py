"""A ledger of many records, made by the database itself: what load tests of reading need.

Rows are made in SQL, 100 tenants with two projects and four keys each, two models a key, spread
evenly over 90 days; then sums and all are made from them as ``tokenfactory usage --rebuild`` does.
"""

import time
from typing import Any

from sqlalchemy import text

from gateway.store.database import Database
from gateway.store.rollups import rebuild
from tests.support.applying import apply

TENANTS, PROJECTS, KEYS, MODELS = 100, 2, 2, 10
DAYS = 90
DAY_MS = 86_400_000
FIRST_MS = 1_790_000_000_000 // DAY_MS * DAY_MS
_SERIES = {
    "sqlite": "WITH RECURSIVE series(n) AS "
    "(SELECT :low UNION ALL SELECT n + 1 FROM series WHERE n < :high - 1) ",
    "postgresql": "",
}
_FROM = {"sqlite": "FROM series", "postgresql": "FROM generate_series(:low, :high - 1) AS s(n)"}
_ID = {
    "sqlite": "printf('%032x', n)",
    "postgresql": "lpad(to_hex(n), 32, '0')",
}
_INSERT = """
    INSERT INTO usage_records (request_id, payload_hash, payload, tenant_id, project_id, key_id,
        model_id, price_id, endpoint, attempts, choices, prompt_tokens, cached_tokens,
        completion_tokens, reasoning_tokens, source, outcome, status, ttft_ms, total_ms, started_ms,
        cost_nano, currency, attempt_log, unbilled_ms, month, charged_nano, covered_tokens,
        operator_cost_nano)
    {series} SELECT {id}, :payload, :payload, n % 400 / 4 + 1, n % 400 / 2 + 1, n % 400 + 1,
        n % 400 % 5 + n / 400 % 2 * 5 + 1, n % 400 % 5 + n / 400 % 2 * 5 + 1,
        'http://10.0.0.5:8000', 1, 1, 1000, 0, 100, 0, 'engine_final', 'ok', 200, 50, 900,
        CAST(:first AS bigint) + CAST(n AS bigint) * :step, 140000, 'USD', '[]', 0, 202609, 140000, 0, 0 {source}
"""


def document() -> dict[str, Any]:
    price = {"input": "0.10", "output": "0.40"}
    return {
        "pools": [{"name": "p", "endpoints": [{"url": "http://10.0.0.5:8000"}]}],
        "models": [{"name": f"m{n}", "pool": "p", "price": price} for n in range(MODELS)],
        "tenants": [
            {
                "name": f"t{tenant}",
                "projects": [
                    {"name": f"p{project}", "keys": [{"name": f"k{key}"} for key in range(KEYS)]}
                    for project in range(PROJECTS)
                ],
            }
            for tenant in range(TENANTS)
        ],
    }


async def fill(db: Database, rows: int, payload: bytes = b"-") -> None:
    """So many records, and their sums; says how long it took."""
    await db.migrate()
    await apply(db, document(), FIRST_MS - 1)
    kind = "sqlite" if db.is_sqlite else "postgresql"
    insert = text(_INSERT.format(series=_SERIES[kind], id=_ID[kind], source=_FROM[kind]))
    step = DAYS * DAY_MS // rows
    begun_s = time.monotonic()
    for low in range(0, rows, 250_000):
        bounds = {"low": low, "high": min(rows, low + 250_000)}
        async with db.begin() as connection:
            await connection.execute(
                insert, bounds | {"payload": payload, "first": FIRST_MS, "step": step}
            )
    filled_s = time.monotonic()
    made = await rebuild(db)
    print(
        f"{rows:,} records made in {filled_s - begun_s:.0f} s, "
        f"{made:,} sums in {time.monotonic() - filled_s:.0f} s",
        flush=True,
    )
    if not db.is_sqlite:
        async with db.begin() as connection:
            await connection.execute(text("ANALYZE"))
