"""What is to be sent next, read from the ledger as it is: no second copy that could differ.

Rows enter the ledger under the books' lock, which is let go of after the commit, so ids become visible
in their order and nothing appears behind a cursor. A correction waits until its record was read. Not
here: cursors (``gateway.store.sinks``), who sends (``gateway.control.deliveries``).
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import RowMapping, case, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.events import Event, Names, correction_event, usage_event
from gateway.store.database import Database
from gateway.store.schema import (
    alerts,
    postings,
    usage_records,
)
from gateway.store.sinks import Cursor
from gateway.store.usage import named_records
from quotas.entries import TENANT_ACCOUNTS
from quotas.record import decode


class Item(msgspec.Struct, frozen=True):
    """An event, and the cursor that has it behind it."""

    event: Event
    after: Cursor


class Page(msgspec.Struct, frozen=True):
    """``end``: the cursor behind everything that was looked at, events or not."""

    items: list[Item]
    end: Cursor


async def next_usage(db: Database, cursor: Cursor, limit: int) -> Page:
    """Records, then corrections of records up to there: at most ``limit`` of each."""
    async with db.read() as connection:
        items = await _records(connection, cursor, limit)
        corrected = await _corrections(connection, items[-1].after if items else cursor, limit)
    return Page(items + corrected.items, corrected.end)


async def next_alerts(db: Database, cursor: Cursor, limit: int) -> Page:
    query = select(alerts).where(alerts.c.id > cursor.alert_id).order_by(alerts.c.id).limit(limit)
    async with db.read() as connection:
        rows = (await connection.execute(query)).mappings().all()
    items = [
        Item(
            msgspec.json.decode(row["event"], type=Event),
            msgspec.structs.replace(cursor, alert_id=row["id"]),
        )
        for row in rows
    ]
    return Page(items, items[-1].after if items else cursor)


async def _records(connection: AsyncConnection, cursor: Cursor, limit: int) -> list[Item]:
    query = (
        named_records(usage_records)
        .where(usage_records.c.id > cursor.record_id)
        .order_by(usage_records.c.id)
    )
    rows = (await connection.execute(query.limit(limit))).mappings()
    items = []
    for row in rows:
        record = decode(bytes(row["payload"]))
        event = usage_event(_names(row), row, record.operation, record.usage, row["price_version"])
        items.append(Item(event, msgspec.structs.replace(cursor, record_id=row["id"])))
    return items


async def _corrections(connection: AsyncConnection, cursor: Cursor, limit: int) -> Page:
    """Entries that moved a record's charge, oldest first."""
    top = int(await connection.scalar(select(func.max(postings.c.id))) or 0)
    if top <= cursor.posting_id:
        return Page([], cursor)
    moved = case((postings.c.account.in_(TENANT_ACCOUNTS), postings.c.nano), else_=0)
    last = func.max(postings.c.id).label("last_id")
    columns = [
        postings.c[name] for name in ("entry_key", "kind", "currency", "occurred_ms", "reverses")
    ]
    query = (
        select(*columns, last, func.sum(moved).label("charged_nano"))
        .where(
            postings.c.id > cursor.posting_id,
            postings.c.id <= top,
            text("postings.kind IN ('reversal', 'reprice')"),
        )
        .group_by(*columns)
        .order_by(last)
        .limit(limit)
    )
    entries = (await connection.execute(query)).mappings().all()
    known = await _by_request(connection, [_request_of(entry) for entry in entries])
    items: list[Item] = []
    for entry in entries:
        row = known.get(_request_of(entry))
        if row is not None and row["id"] > cursor.record_id:
            return Page(items, items[-1].after if items else cursor)  # its record comes first
        names = _names(row) if row else Names(tenant=None, project=None, key=None, model=None)
        event = correction_event(names, _request_of(entry), dict(entry), int(entry["charged_nano"]))
        items.append(Item(event, msgspec.structs.replace(cursor, posting_id=entry["last_id"])))
    end = (
        items[-1].after if len(items) == limit else msgspec.structs.replace(cursor, posting_id=top)
    )
    return Page(items, end)


def _request_of(entry: RowMapping) -> str:
    """``reversal:ID:3`` and ``reprice:ID:3`` name the record."""
    return str(entry["entry_key"]).partition(":")[2].rpartition(":")[0]


async def _by_request(
    connection: AsyncConnection, request_ids: Sequence[str]
) -> dict[str, RowMapping]:
    if not request_ids:
        return {}
    query = named_records(usage_records).where(usage_records.c.request_id.in_(request_ids))
    rows = (await connection.execute(query)).mappings()
    return {row["request_id"]: row for row in rows}


def _names(row: RowMapping) -> Names:
    return Names(tenant=row["tenant"], project=row["project"], key=row["key"], model=row["model"])
