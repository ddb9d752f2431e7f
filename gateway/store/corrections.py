"""Corrections of what a record was charged: reversed, or charged anew at another price.

Nothing is changed: a reversing entry undoes the one before and names it, a new one stands beside
it, both in the first month still open. What a reversal gives back to grants is a grant of its own.
Not here: what a charge is (``quotas.charging``).
"""

from typing import Any

import msgspec
from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import Conflict, NotFound, insert_row
from gateway.store.books import Books, open_books
from gateway.store.catalog import prices_of
from gateway.store.entries import lock_books, read_entries
from gateway.store.rollups import Rollups
from gateway.store.schema import grants, price_versions, usage_records
from quotas.charging import charge
from quotas.entries import TENANT_ACCOUNTS, Entry, reversal
from quotas.grants import Grant, GrantKind
from quotas.pricing import Price
from quotas.record import UsageRecord, decode

#: How often one record may be charged anew.
CORRECTIONS_MAX = 20
REVERSED = "reversed"
_GIVEN_BACK: dict[str, GrantKind] = {"customer_prepaid": "paid", "promotional": "promotional"}


async def reverse_record(
    connection: AsyncConnection, request_id: str, now_ms: int
) -> dict[str, Any]:
    """Undo what a record was charged. Raises ``NotFound``, and ``Conflict`` when nothing is left
    to undo.
    """
    await lock_books(connection)
    record, row, books, entry, number = await _charged(connection, request_id, now_ms)
    rollups = Rollups()
    undone = await _undo(connection, books, rollups, record, row, entry, number, now_ms)
    await books.write(connection)
    await rollups.write(connection)
    return {
        "request_id": request_id,
        "tenant_id": record.tenant_id,
        "entry": undone.key,
        "reverses": entry.key,
    }


async def reprice_record(
    connection: AsyncConnection, request_id: str, version: int, now_ms: int
) -> dict[str, Any]:
    """Charge a record anew at another version of its model's price."""
    await lock_books(connection)
    record, row, books, entry, number = await _charged(connection, request_id, now_ms)
    price = await _version(connection, record.model_id, version)
    rollups = Rollups()
    await _undo(connection, books, rollups, record, row, entry, number, now_ms)
    month = books.closed.open_month("tenant", record.tenant_id, now_ms)
    charged = charge(
        record,
        price,
        books.contract(record.tenant_id, price.currency, record.started_ms),
        None,
        books.account(record.tenant_id, price.currency),
        books.shares.at(record.model_id, record.started_ms),
        month,
        key=f"reprice:{request_id}:{number}",
        covered=row["covered_tokens"],
    )
    made = None
    if charged.entry is not None:
        made = msgspec.structs.replace(charged.entry, kind="reprice", occurred_ms=now_ms)
        books.journal.add(made)
    books.list_lines(record, price, charged, month, count=0)
    rollups.correct(row, price.currency, charged.charged_nano)
    await books.write(connection)
    await rollups.write(connection)
    return {
        "request_id": request_id,
        "tenant_id": record.tenant_id,
        "reverses": entry.key,
        "entry": made.key if made else None,
        "charged_nano": charged.charged_nano,
    }


async def _charged(
    connection: AsyncConnection, request_id: str, now_ms: int
) -> tuple[UsageRecord, RowMapping, Books, Entry, int]:
    """(the record, its row, the books, the entry that stands, its number)."""
    query = select(usage_records).where(usage_records.c.request_id == request_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no record {request_id}")
    entries = await read_entries(connection, _keys_of(request_id))
    undone = {entry.reverses for entry in entries}
    charges = [entry for entry in entries if not entry.reverses]
    if not charges:
        raise Conflict("the record was charged nothing")
    if charges[-1].key in undone:
        raise Conflict(f"{charges[-1].key} is reversed already")
    if len(charges) > CORRECTIONS_MAX:
        raise Conflict("the record was charged anew too often; reverse it and be done")
    record = decode(bytes(row["payload"]))
    price = (await prices_of(connection, [record.price_id])).get(record.price_id)
    books = await open_books(connection, [(record, price, ())], now_ms)
    return record, row, books, charges[-1], len(charges)


async def _undo(
    connection: AsyncConnection,
    books: Books,
    rollups: Rollups,
    record: UsageRecord,
    row: RowMapping,
    entry: Entry,
    number: int,
    now_ms: int,
) -> Entry:
    """Reverse the entry, take it off this month's statement and the record's hour, give back what
    grants paid.
    """
    undone = reversal(entry, f"reversal:{record.request_id}:{number}", now_ms)
    books.journal.add(undone)
    month = books.closed.open_month("tenant", record.tenant_id, now_ms)
    charged_nano = 0
    for posting in entry.postings:
        if posting.account in TENANT_ACCOUNTS:
            charged_nano += posting.nano
        kind = _GIVEN_BACK.get(posting.account)
        if kind is not None:
            given = await _give_back(connection, record, entry, undone, kind, posting.nano)
            books.give(record.tenant_id, entry.currency, given)
    where = (record.tenant_id, month, entry.currency, record.model_id, record.price_id)
    books.lines[*where, REVERSED] += 1
    books.amounts[*where, REVERSED] -= charged_nano
    rollups.correct(row, entry.currency, -charged_nano)
    contract = books.contract(record.tenant_id, entry.currency, record.started_ms)
    if contract is not None and contract.kind == "commitment":
        account = books.account(record.tenant_id, entry.currency)
        used = account.committed.get(month, 0)
        account.committed[month] = used - min(used, charged_nano)
    return undone


async def _give_back(
    connection: AsyncConnection,
    record: UsageRecord,
    entry: Entry,
    undone: Entry,
    kind: GrantKind,
    nano: int,
) -> Grant:
    """A grant of what was drawn, used before any other of its kind."""
    values: dict[str, Any] = {"kind": kind, "left_nano": nano, "priority": 0, "expires_ms": 0}
    grant_id = await insert_row(
        connection,
        grants,
        tenant_id=record.tenant_id,
        currency=entry.currency,
        amount_nano=nano,
        given_ms=undone.occurred_ms,
        reference=undone.key,
        entry_key=f"{undone.key}:{kind}",
        **values,
    )
    return Grant(id=grant_id, **values)


def _keys_of(request_id: str) -> list[str]:
    """Of every entry that a record can have."""
    numbers = range(1, CORRECTIONS_MAX + 2)
    corrections = [f"{kind}:{request_id}:{n}" for kind in ("reversal", "reprice") for n in numbers]
    return [f"use:{request_id}", *corrections]


async def _version(connection: AsyncConnection, model_id: int, version: int) -> Price:
    price_id = await connection.scalar(
        select(price_versions.c.id).where(
            price_versions.c.model_id == model_id, price_versions.c.version == version
        )
    )
    if price_id is None:
        raise NotFound(f"the model has no price version {version}")
    return (await prices_of(connection, [int(price_id)]))[int(price_id)]
