"""Usage records in SQL: inserted once for ever, read oldest first, summed.

The same request id with another payload is quarantined, never overwritten. Cost is computed here,
once, from the price version that the record froze at admission.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.schema import (
    keys,
    models,
    price_versions,
    prices,
    projects,
    tenants,
    usage_quarantine,
    usage_records,
)
from quotas.pricing import cost_by_meter
from quotas.record import UsageRecord

DAY_MS = 86_400_000
NANO = 1_000_000_000
By = Literal["key", "model", "day"]


class Inserted(msgspec.Struct, frozen=True):
    new: int
    duplicate: int
    quarantined: int


async def insert_records(db: Database, batch: Sequence[tuple[bytes, UsageRecord]]) -> Inserted:
    """Insert what is new. Raises only what the database raises when it is away."""
    async with db.begin() as connection:
        known = await _known_hashes(connection, [record.request_id for _, record in batch])
        books = await _price_books(connection, {record.price_id for _, record in batch})
        rows: list[dict[str, Any]] = []
        odd: list[dict[str, Any]] = []
        duplicates = 0
        for payload, record in batch:
            digest = hashlib.sha256(payload).digest()[:16]
            seen = known.get(record.request_id)
            if seen is None:
                known[record.request_id] = digest
                rows.append(_row(payload, digest, record, books.get(record.price_id)))
            elif seen == digest:
                duplicates += 1
            else:
                odd.append({"request_id": record.request_id, "payload_hash": digest,
                            "payload": payload, "seen_ms": time.time_ns() // 1_000_000})  # fmt: skip
        if rows:
            await connection.execute(insert(usage_records), rows)
        for each in odd:
            await _quarantine(connection, each)
    return Inserted(len(rows), duplicates, len(odd))


async def known_ids(db: Database, request_ids: Sequence[str]) -> set[str]:
    """Which of these the ledger has."""
    async with db.read() as connection:
        return set(await _known_hashes(connection, request_ids))


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
    """Sums per key path, model name or UTC day, and per currency."""
    group = {
        "key": tenants.c.name + "/" + projects.c.name + "/" + keys.c.name,
        "model": models.c.name,
        "day": usage_records.c.started_ms // DAY_MS,
    }[by]
    total = [
        func.sum(usage_records.c[column]).label(column)
        for column in ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nano")
    ]
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
            "cost": money(int(row["cost_nano"])),
            "currency": row["currency"],
        }
        for row in rows
    ]


def money(nano: int) -> str:
    """Nano-units as an exact decimal."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


async def _known_hashes(
    connection: AsyncConnection, request_ids: Sequence[str]
) -> dict[str, bytes]:
    if not request_ids:
        return {}
    rows = await connection.execute(
        select(usage_records.c.request_id, usage_records.c.payload_hash).where(
            usage_records.c.request_id.in_(request_ids)
        )
    )
    return {request_id: bytes(digest) for request_id, digest in rows}


async def _price_books(
    connection: AsyncConnection, price_ids: set[int]
) -> dict[int, tuple[str, dict[str, int]]]:
    rows = await connection.execute(
        select(price_versions.c.id, price_versions.c.currency, prices.c.meter, prices.c.nano)
        .join(prices, prices.c.price_version_id == price_versions.c.id)
        .where(price_versions.c.id.in_(price_ids))
    )
    books: dict[int, tuple[str, dict[str, int]]] = {}
    for price_id, currency, meter, nano in rows:
        books.setdefault(price_id, (currency, {}))[1][meter] = nano
    return books


def _row(
    payload: bytes,
    digest: bytes,
    record: UsageRecord,
    book: tuple[str, Mapping[str, int]] | None,
) -> dict[str, Any]:
    currency, nano = book or ("", {})
    usage = record.usage
    return {
        "request_id": record.request_id,
        "payload_hash": digest,
        "payload": payload,
        "tenant_id": record.tenant_id,
        "project_id": record.project_id,
        "key_id": record.key_id,
        "model_id": record.model_id,
        "price_id": record.price_id,
        "endpoint": record.attempts[-1].endpoint if record.attempts else "",
        "attempts": len(record.attempts),
        "choices": record.choices,
        "prompt_tokens": usage.get("prompt_tokens", 0),
        "cached_tokens": usage.get("cached_tokens", 0),
        "completion_tokens": usage.get("completion_tokens", 0),
        "reasoning_tokens": usage.get("reasoning_tokens", 0),
        "source": record.source,
        "outcome": record.outcome,
        "status": record.status,
        "ttft_ms": record.ttft_ms,
        "total_ms": record.total_ms,
        "started_ms": record.started_ms,
        "cost_nano": sum(cost_by_meter(record.billed, nano).values()),
        "currency": currency,
    }


async def _quarantine(connection: AsyncConnection, row: dict[str, Any]) -> None:
    same = await connection.scalar(
        select(usage_quarantine.c.id).where(
            usage_quarantine.c.request_id == row["request_id"],
            usage_quarantine.c.payload_hash == row["payload_hash"],
        )
    )
    if same is None:
        await connection.execute(insert(usage_quarantine).values(**row))


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
    "price_version",
)


def _shown(row: RowMapping) -> dict[str, Any]:
    shown = {name: row[name] for name in _COPIED}
    shown["started_at"] = timestamp(row["started_ms"])
    return shown


def timestamp(unix_ms: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS / 1000, UTC).date().isoformat()
