"""Usage records as they are read: one by its id, pages oldest first.

Names are today's, joined by ids that are never reused. Not here: how records come to be there
(``gateway.store.ledger``), sums (``gateway.store.summaries``).
"""

import json
from typing import Any

from sqlalchemy import RowMapping, Select, select

from gateway.store.database import Database
from gateway.store.ledger import timestamp
from gateway.store.schema import keys, models, price_versions, projects, tenants, usage_records


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


def named_records(*columns: Any) -> Select[Any]:
    """These columns of usage records, each beside the names of what the record's ids stand for."""
    return (
        select(
            *columns,
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
    )


async def read_records(
    db: Database, *, after_id: int = 0, limit: int = 1000, since_ms: int = 0
) -> tuple[list[dict[str, Any]], int | None]:
    """A page, oldest first, with names; and the cursor of the next page, None at the end."""
    query = (
        named_records(usage_records)
        .where(usage_records.c.id > after_id, usage_records.c.started_ms >= since_ms)
        .order_by(usage_records.c.id)
        .limit(limit + 1)
    )
    async with db.read() as connection:
        rows = list((await connection.execute(query)).mappings())
    page = rows[:limit]
    return [_shown(row) for row in page], page[-1]["id"] if len(rows) > limit else None


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
