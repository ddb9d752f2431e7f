"""Usage records as they are read: one by its id, pages oldest first, sums.

Names are today's, joined by ids that are never reused. Not here: how records come to be there
(``gateway.store.ledger``).
"""

import json
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import RowMapping, func, select

from gateway.store.database import Database
from gateway.store.ledger import money, timestamp
from gateway.store.schema import keys, models, price_versions, projects, tenants, usage_records

DAY_MS = 86_400_000
By = Literal["key", "model", "day"]
SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "unbilled_ms", "cost_nano")


async def find_record(db: Database, request_id: str, key_id: int) -> dict[str, Any] | None:
    """One record of that key, with its payload and the model's name; None for another key's."""
    query = (
        select(usage_records, models.c.name.label("model"))
        .outerjoin(models, usage_records.c.model_id == models.c.id)
        .where(usage_records.c.request_id == request_id, usage_records.c.key_id == key_id)
    )
    async with db.read() as connection:
        row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else dict(row)


async def read_records(
    db: Database, *, after_id: int = 0, limit: int = 1000, since_ms: int = 0
) -> tuple[list[dict[str, Any]], int | None]:
    """A page, oldest first, with names; and the cursor of the next page, None at the end."""
    query = (
        select(
            usage_records,
            tenants.c.name.label("tenant"),
            projects.c.name.label("project"),
            keys.c.name.label("key"),
            models.c.name.label("model"),
            price_versions.c.version.label("price_version"),
        )
        .outerjoin(tenants, usage_records.c.tenant_id == tenants.c.id)
        .outerjoin(projects, usage_records.c.project_id == projects.c.id)
        .outerjoin(keys, usage_records.c.key_id == keys.c.id)
        .outerjoin(models, usage_records.c.model_id == models.c.id)
        .outerjoin(price_versions, usage_records.c.price_id == price_versions.c.id)
        .where(usage_records.c.id > after_id, usage_records.c.started_ms >= since_ms)
        .order_by(usage_records.c.id)
        .limit(limit + 1)
    )
    async with db.read() as connection:
        rows = list((await connection.execute(query)).mappings())
    page = rows[:limit]
    return [_shown(row) for row in page], page[-1]["id"] if len(rows) > limit else None


async def summary(db: Database, by: By, since_ms: int = 0) -> list[dict[str, Any]]:
    """Sums per key path, model name or UTC day, and per currency.

    ``unbilled_ms``: engine time of endings that billed nothing.
    """
    group = {
        "key": tenants.c.name + "/" + projects.c.name + "/" + keys.c.name,
        "model": models.c.name,
        "day": usage_records.c.started_ms // DAY_MS,
    }[by]
    total = [func.sum(usage_records.c[column]).label(column) for column in SUMMED]
    query = (
        select(group.label("named"), usage_records.c.currency, func.count().label("requests"),
               *total)
        .outerjoin(tenants, usage_records.c.tenant_id == tenants.c.id)
        .outerjoin(projects, usage_records.c.project_id == projects.c.id)
        .outerjoin(keys, usage_records.c.key_id == keys.c.id)
        .outerjoin(models, usage_records.c.model_id == models.c.id)
        .where(usage_records.c.started_ms >= since_ms)
        .group_by(group, usage_records.c.currency)
        .order_by(group)
    )  # fmt: skip
    async with db.read() as connection:
        rows = list((await connection.execute(query)).mappings())
    return [
        {
            by: _day(int(row["named"])) if by == "day" else row["named"],
            "requests": row["requests"],
            "prompt_tokens": int(row["prompt_tokens"]),
            "cached_tokens": int(row["cached_tokens"]),
            "completion_tokens": int(row["completion_tokens"]),
            "unbilled_ms": int(row["unbilled_ms"]),
            "cost": money(int(row["cost_nano"])),
            "currency": row["currency"],
        }
        for row in rows
    ]


_COPIED = (
    "request_id",
    "tenant",
    "project",
    "key",
    "model",
    "endpoint",
    "attempts",
    "choices",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "source",
    "outcome",
    "status",
    "ttft_ms",
    "total_ms",
    "unbilled_ms",
    "price_version",
)


def _shown(row: RowMapping) -> dict[str, Any]:
    shown = {name: row[name] for name in _COPIED}
    shown["attempt_log"] = json.loads(row["attempt_log"])
    shown["started_at"] = timestamp(row["started_ms"])
    return shown


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS / 1000, UTC).date().isoformat()
