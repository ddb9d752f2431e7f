"""Entries into SQL: append-only postings, and the sums that are kept beside them.

Every write takes the caller's transaction, which holds the books' lock: one writer at a time, so
that a month is not closed under somebody's hands. Not here: what is charged
(``gateway.store.books``), what an entry is (``quotas.entries``).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, Table, func, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.bulk import append
from gateway.store.schema import account_sums, closings, postings
from quotas.entries import Entry, Posting
from quotas.months import open_period

#: PostgreSQL: one writer of the books at a time, over all hosts.
BOOKS_LOCK = 0x746F6B68
_COLUMNS = [column.name for column in postings.c if column.name != "id"]
SumKey = tuple[int, int, str, str, int]  # tenant, publisher, currency, account, month


async def lock_books(connection: AsyncConnection) -> None:
    """Wait for one's turn, until the transaction's end. SQLite's writers queue at its start."""
    if connection.dialect.name != "sqlite":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": BOOKS_LOCK})


class Closed:
    """Through which month each party's statements are closed; 0 = none."""

    def __init__(self, months: Mapping[tuple[str, int], int]) -> None:
        self._months = months

    def open_month(self, kind: str, party_id: int, at_ms: int) -> int:
        return open_period(at_ms, self._months.get((kind, party_id), 0))


async def read_closed(connection: AsyncConnection) -> Closed:
    rows = await connection.execute(select(closings))
    return Closed({(row.kind, row.party_id): row.month for row in rows})


class Journal:
    """Entries of one transaction, collected and written at once."""

    def __init__(self, closed: Closed, now_ms: int) -> None:
        self._closed = closed
        self.now_ms = now_ms
        self._rows: list[tuple[Any, ...]] = []
        self._sums: Counter[SumKey] = Counter()

    def add(self, entry: Entry) -> None:
        """Each posting goes to the first open month of whose statement it is on."""
        month = self._closed.open_month("tenant", entry.tenant_id, entry.occurred_ms)
        for line, posting in enumerate(entry.postings):
            booked = month
            if posting.publisher_id:
                booked = self._closed.open_month(
                    "publisher", posting.publisher_id, entry.occurred_ms
                )
            self._rows.append(
                (
                    entry.key,
                    line,
                    entry.kind,
                    entry.tenant_id,
                    posting.publisher_id,
                    entry.model_id,
                    posting.account,
                    entry.currency,
                    posting.nano,
                    booked,
                    entry.occurred_ms,
                    self.now_ms,
                    entry.reverses,
                )
            )
            self._sums[
                entry.tenant_id, posting.publisher_id, entry.currency, posting.account, booked
            ] += posting.nano

    async def write(self, connection: AsyncConnection) -> None:
        if self._rows:
            await append(connection, postings, _COLUMNS, self._rows)
            await add_up(
                connection,
                account_sums,
                ("nano",),
                [
                    {
                        "tenant_id": tenant_id,
                        "publisher_id": publisher_id,
                        "currency": currency,
                        "account": account,
                        "month": month,
                        "nano": nano,
                    }
                    for (tenant_id, publisher_id, currency, account, month), nano in sorted(
                        self._sums.items()
                    )
                ],
            )


async def add_up(
    connection: AsyncConnection,
    table: Table,
    summed: Sequence[str],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Insert rows, or add their ``summed`` columns to those that are there by primary key."""
    if not rows:
        return
    if connection.dialect.name != "sqlite":
        await _add_up_at_once(connection, table, summed, rows)
        return
    statement = sqlite.insert(table)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={name: table.c[name] + statement.excluded[name] for name in summed},
        ),
        [dict(row) for row in rows],
    )


async def _add_up_at_once(
    connection: AsyncConnection,
    table: Table,
    summed: Sequence[str],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """PostgreSQL: every row in one statement, an array a column, in half the time of one a row."""
    keys = [column.name for column in table.primary_key]
    merged: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        known = merged.get(key)
        if known is None:
            merged[key] = dict(row)
        else:  # one statement may touch a row once
            known |= {name: known[name] + row[name] for name in summed}
    columns = list(rows[0])
    types = [table.c[name].type.compile(connection.dialect) for name in columns]
    arrays = ", ".join(
        f"CAST(:{name} AS {kind}[])" for name, kind in zip(columns, types, strict=True)
    )
    adding = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in summed)
    # Names of the schema alone; what varies is bound.
    statement = text(
        f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM unnest({arrays}) "  # noqa: S608
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {adding}"
    )
    values = {name: [row[name] for row in merged.values()] for name in columns}
    await connection.execute(statement, values)


async def read_entries(connection: AsyncConnection, keys: Sequence[str]) -> list[Entry]:
    """Those of these keys that were posted, oldest first."""
    rows = await connection.execute(
        select(postings).where(postings.c.entry_key.in_(keys)).order_by(postings.c.id)
    )
    found: dict[str, list[RowMapping]] = {}
    for row in rows.mappings():
        found.setdefault(row["entry_key"], []).append(row)
    return [_entry(lines) for lines in found.values()]


async def read_entry(connection: AsyncConnection, key: str) -> Entry | None:
    found = await read_entries(connection, [key])
    return found[0] if found else None


async def balance_of(
    connection: AsyncConnection, tenant_id: int, account: str, currency: str
) -> int:
    """The sum of an account of a tenant's, debits positive."""
    found = await connection.scalar(
        select(func.sum(account_sums.c.nano)).where(
            account_sums.c.tenant_id == tenant_id,
            account_sums.c.account == account,
            account_sums.c.currency == currency,
        )
    )
    return int(found or 0)


async def drifts(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Where the kept sums differ from the postings they are of; empty when the books are in order."""
    names = ("tenant_id", "publisher_id", "currency", "account", "month")
    posted = await connection.execute(
        select(*(postings.c[name] for name in names), func.sum(postings.c.nano)).group_by(
            *(postings.c[name] for name in names)
        )
    )
    found = {tuple(row[:-1]): int(row[-1]) for row in posted}
    kept = await connection.execute(
        select(*(account_sums.c[name] for name in names), account_sums.c.nano)
    )
    known = {tuple(row[:-1]): int(row[-1]) for row in kept}
    return [
        {
            **dict(zip(names, key, strict=True)),
            "posted": found.get(key, 0),
            "kept": known.get(key, 0),
        }
        for key in sorted(found.keys() | known.keys())
        if found.get(key, 0) != known.get(key, 0)
    ]


def _entry(lines: Sequence[RowMapping]) -> Entry:
    first = lines[0]
    return Entry(
        key=first["entry_key"],
        kind=first["kind"],
        tenant_id=first["tenant_id"],
        currency=first["currency"],
        occurred_ms=first["occurred_ms"],
        postings=tuple(Posting(row["account"], row["nano"], row["publisher_id"]) for row in lines),
        model_id=first["model_id"],
        reverses=first["reverses"],
    )
