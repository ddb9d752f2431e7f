"""Pages of what is exported: records, postings, and charges that are of no record, each by cursor.

Ids grow in the order of commits (every writer of the books holds their lock), so what a cursor has
passed never changes and nothing appears behind it. Names are today's. Not here: how a row looks
(``gateway.control.exports``, ``gateway.control.focus``).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Select, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import (
    models,
    postings,
    publishers,
    statements,
    tenants,
    usage_records,
)
from gateway.store.usage import named_records
from quotas.entries import TENANT_ACCOUNTS

#: Charges that are no record's own: a record's first charge is in its row.
OTHER_CHARGES = ("reprice", "reversal", "shortfall", "throughput")
#: Of a record: what an export lists, and what a charge is made of. No more is read of a million rows.
LISTED = (
    "id", "request_id", "started_ms", "endpoint", "attempts", "choices", "prompt_tokens",
    "cached_tokens", "completion_tokens", "reasoning_tokens", "source", "outcome", "status",
    "ttft_ms", "total_ms", "unbilled_ms", "cost_nano", "charged_nano", "currency", "month",
)  # fmt: skip
RATED = (
    "id", "request_id", "started_ms", "tenant_id", "project_id", "price_id", "charged_nano",
    "currency", "month", "payload",
)  # fmt: skip
Rows = Sequence[Any]


class Only(msgspec.Struct, frozen=True):
    """What is exported: 0 = of every tenant, booked in any month (202611)."""

    tenant_id: int = 0
    month: int = 0


async def records_after(
    connection: AsyncConnection, after_id: int, only: Only, limit: int, *, rated: bool = False
) -> Rows:
    """Usage records by id, with names: as they are listed, or what is needed to rate them again."""
    columns = RATED if rated else LISTED
    query = (
        named_records(*(usage_records.c[name] for name in columns))
        .where(usage_records.c.id > after_id)
        .order_by(usage_records.c.id)
        .limit(limit)
    )
    rows: Rows = (await connection.execute(_only(query, usage_records, only))).all()
    return rows


async def postings_after(
    connection: AsyncConnection, after_id: int, only: Only, limit: int
) -> Rows:
    """Postings by id, with names."""
    query = (
        select(
            postings,
            tenants.c.name.label("tenant"),
            publishers.c.name.label("publisher"),
            models.c.name.label("model"),
        )
        .outerjoin(tenants, postings.c.tenant_id == tenants.c.id)
        .outerjoin(publishers, postings.c.publisher_id == publishers.c.id)
        .outerjoin(models, postings.c.model_id == models.c.id)
        .where(postings.c.id > after_id)
        .order_by(postings.c.id)
        .limit(limit)
    )
    rows: Rows = (await connection.execute(_only(query, postings, only))).all()
    return rows


async def charges_after(connection: AsyncConnection, after_id: int, only: Only, limit: int) -> Rows:
    """Entries of ``OTHER_CHARGES``, by the id of their last posting: what each charged a tenant."""
    charged = func.sum(case((postings.c.account.in_(TENANT_ACCOUNTS), postings.c.nano), else_=0))
    last = func.max(postings.c.id)
    named = (
        postings.c.entry_key,
        postings.c.kind,
        postings.c.tenant_id,
        postings.c.model_id,
        postings.c.currency,
        postings.c.occurred_ms,
        postings.c.reverses,
    )
    # A publisher's part of an entry may be booked in another month: the tenant's counts.
    month = func.max(case((postings.c.account.in_(TENANT_ACCOUNTS), postings.c.month), else_=0))
    query = (
        select(
            last.label("id"),
            *named,
            month.label("month"),
            charged.label("nano"),
            tenants.c.name.label("tenant"),
            models.c.name.label("model"),
        )
        .outerjoin(tenants, postings.c.tenant_id == tenants.c.id)
        .outerjoin(models, postings.c.model_id == models.c.id)
        .where(postings.c.id > after_id, postings.c.kind.in_(OTHER_CHARGES))
        .group_by(*named, tenants.c.name, models.c.name)
        .order_by(last)
        .limit(limit)
    )
    if only.tenant_id:
        query = query.where(postings.c.tenant_id == only.tenant_id)
    if only.month:
        query = query.having(month == only.month)
    return (await connection.execute(query)).all()


async def statement_numbers(
    connection: AsyncConnection, tenant_ids: set[int], months: set[int]
) -> dict[tuple[int, int, str], int]:
    """(tenant, month, currency) -> the number of its closed statement."""
    rows = await connection.execute(
        select(
            statements.c.party_id, statements.c.month, statements.c.currency, statements.c.number
        ).where(
            statements.c.kind == "tenant",
            statements.c.party_id.in_(sorted(tenant_ids)),
            statements.c.month.in_(sorted(months)),
        )
    )
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def _only(query: Select[Any], table: Any, only: Only) -> Select[Any]:
    if only.tenant_id:
        query = query.where(table.c.tenant_id == only.tenant_id)
    if only.month:
        query = query.where(table.c.month == only.month)
    return query
