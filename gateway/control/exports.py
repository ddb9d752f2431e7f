"""Exports: records, postings and FOCUS rows, as CSV or JSON lines, of any size in a page's memory.

Every row carries the cursor of what comes after it, so an export that was cut goes on from its last
whole line, and the next one from where this ended. Not here: SQL (``gateway.store.exports``), what
FOCUS's columns say (``gateway.control.focus``).
"""

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.control import focus
from gateway.control.focus import Seller
from gateway.store import exports
from gateway.store.catalog import prices_of
from gateway.store.database import Database
from gateway.store.exports import Only
from gateway.store.ledger import timestamp
from gateway.store.schema import models, price_versions
from gateway.store.statements import find_party, one
from quotas.money import decimal
from quotas.months import format_period, parse_period
from quotas.pricing import Price, rate
from quotas.record import decode
from quotas.statement import Statement

PAGE = 1_000
PAGE_MAX = 10_000
FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
RECORD_COLUMNS = (
    "cursor", "request_id", "started_at", "tenant", "project", "key", "model", "endpoint",
    "attempts", "choices", "prompt_tokens", "cached_tokens", "completion_tokens",
    "reasoning_tokens", "source", "outcome", "status", "ttft_ms", "total_ms", "unbilled_ms",
    "price_version", "cost", "charged", "currency", "month",
)  # fmt: skip
POSTING_COLUMNS = (
    "cursor", "entry_key", "line", "kind", "tenant", "publisher", "model", "account", "currency",
    "amount", "month", "occurred_at", "posted_at", "reverses",
)  # fmt: skip
FOCUS_COLUMNS = (*focus.COLUMNS, *focus.OWN_COLUMNS)
_CURSOR = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?")
Row = Mapping[str, Any]


class Cursor(msgspec.Struct, frozen=True):
    """Ids that were passed: "12" of one table, "12.7" of records and postings."""

    first: int = 0
    second: int = 0

    def __str__(self) -> str:
        return f"{self.first}.{self.second}"


class Page(msgspec.Struct, frozen=True):
    """``after``: from where to go on, now if there is ``more``, else some day."""

    rows: list[Row]
    after: Cursor
    more: bool


class Exports:
    """The handlers. ``ship``: bring what ended a moment ago into the ledger first."""

    def __init__(self, db: Database, ship: Callable[[], Awaitable[None]], seller: Seller) -> None:
        self._db = db
        self._ship = ship
        self._seller = seller
        self._prices: dict[int, Price] = {}  # a version never changes

    async def export(self, request: Request) -> Response:
        """``GET /admin/v1/export``. Without ``limit`` the whole, as a stream; with it one page:
        ``x-tf-cursor`` is where to go on, ``x-tf-more`` whether there is more now. A cursor means no
        header line. Raises ``ValueError`` and ``NotFound``.
        """
        query = request.query_params
        for name in query:
            if name not in ("data", "format", "tenant", "month", "cursor", "limit"):
                raise ValueError(
                    f"{name[:40]}: expected data, format, tenant, month, cursor, limit"
                )
        columns, page_of = self._data(query.get("data", "records"))
        form = query.get("format", "csv")
        if form not in FORMATS:
            raise ValueError("format: expected csv or jsonl")
        only = await self._only(query)
        cursor = _cursor(query.get("cursor", ""))
        head = _line(columns) if form == "csv" and "cursor" not in query else b""
        write = _csv if form == "csv" else _jsonl
        await self._ship()
        if "limit" in query:
            limit = _limit(query["limit"])
            async with self._db.read() as connection:
                page = await page_of(connection, cursor, only, limit)
            headers = {"x-tf-cursor": str(page.after), "x-tf-more": str(int(page.more))}
            return Response(
                head + write(columns, page.rows), media_type=FORMATS[form], headers=headers
            )

        async def stream() -> AsyncIterator[bytes]:
            if head:
                yield head
            page = Page([], cursor, more=True)
            while page.more:
                async with self._db.read() as connection:
                    page = await page_of(connection, page.after, only, PAGE)
                if page.rows:
                    yield write(columns, page.rows)

        return StreamingResponse(stream(), media_type=FORMATS[form])

    async def statement(self, number: int, form: str) -> Response:
        """A closed statement of a tenant as FOCUS rows: ``focus-csv`` or ``focus-jsonl``."""
        kind = form.removeprefix("focus-")
        if kind not in FORMATS:
            raise ValueError("format: expected focus-csv or focus-jsonl")
        async with self._db.read() as connection:
            row = await one(connection, number)
            if row["kind"] != "tenant":
                raise ValueError(
                    "format: a publisher's statement is no bill; FOCUS has no rows for it"
                )
            statement = msgspec.json.decode(row["document"], type=Statement)
            prices = await _prices_named(connection, statement)
        rows: list[Row] = [*focus.rows_of_statement(statement, prices, self._seller)]
        columns = focus.COLUMNS
        data = _line(columns) + _csv(columns, rows) if kind == "csv" else _jsonl(columns, rows)
        return Response(data, media_type=FORMATS[kind])

    # -- one page of each kind -----------------------------------------------------------------

    def _data(self, name: str) -> tuple[tuple[str, ...], "PageOf"]:
        found: dict[str, tuple[tuple[str, ...], PageOf]] = {
            "records": (RECORD_COLUMNS, _records),
            "postings": (POSTING_COLUMNS, _postings),
            "focus": (FOCUS_COLUMNS, self._focus),
        }
        if name not in found:
            raise ValueError("data: expected records, postings or focus")
        return found[name]

    async def _focus(
        self, connection: AsyncConnection, cursor: Cursor, only: Only, limit: int
    ) -> Page:
        """Records first, then the charges that are of none."""
        found = await exports.records_after(connection, cursor.first, only, limit, rated=True)
        await self._learn_prices(connection, {row.price_id for row in found})
        numbers = await exports.statement_numbers(
            connection, {row.tenant_id for row in found}, {row.month for row in found}
        )
        rows: list[Row] = []
        for row in found:
            cursor = Cursor(row.id, cursor.second)
            price = self._prices.get(row.price_id)
            if price is None:
                continue  # of no price and so of no currency: there is nothing to bill
            record = decode(bytes(row.payload))
            lines = rate(price, record.usage, record.operation, record.started_ms)
            invoice = numbers.get((row.tenant_id, row.month, row.currency))
            at = str(cursor)
            for made in focus.rows_of_record(row, price, lines, self._seller, invoice):
                made["x_Cursor"] = at
                rows.append(made)
        if len(found) == limit:
            return Page(rows, cursor, more=True)
        charges = await exports.charges_after(connection, cursor.second, only, limit)
        numbers = await exports.statement_numbers(
            connection, {row.tenant_id for row in charges}, {row.month for row in charges}
        )
        for row in charges:
            cursor = Cursor(cursor.first, row.id)
            invoice = numbers.get((row.tenant_id, row.month, row.currency))
            made = focus.row_of_charge(row, self._seller, invoice)
            made["x_Cursor"] = str(cursor)
            rows.append(made)
        return Page(rows, cursor, more=len(charges) == limit)

    async def _learn_prices(self, connection: AsyncConnection, ids: set[int]) -> None:
        unknown = ids - self._prices.keys() - {0}
        if unknown:
            self._prices |= await prices_of(connection, unknown)

    async def _only(self, query: Mapping[str, str]) -> Only:
        month = parse_period(query["month"]) if "month" in query else 0
        if "tenant" not in query:
            return Only(month=month)
        async with self._db.read() as connection:
            return Only(await find_party(connection, "tenant", query["tenant"]), month)


PageOf = Callable[[AsyncConnection, Cursor, Only, int], Awaitable[Page]]


async def _records(connection: AsyncConnection, cursor: Cursor, only: Only, limit: int) -> Page:
    found = await exports.records_after(connection, cursor.first, only, limit)
    rows = [_record(told) for told in _told(found)]
    return Page(rows, Cursor(found[-1].id) if found else cursor, more=len(found) == limit)


async def _postings(connection: AsyncConnection, cursor: Cursor, only: Only, limit: int) -> Page:
    found = await exports.postings_after(connection, cursor.first, only, limit)
    rows = [_posting(told) for told in _told(found)]
    return Page(rows, Cursor(found[-1].id) if found else cursor, more=len(found) == limit)


def _record(told: dict[str, Any]) -> Row:
    month = told["month"]
    told["cursor"] = f"{told['id']}.0"
    told["started_at"] = timestamp(told["started_ms"])
    told["cost"] = decimal(told["cost_nano"])
    told["charged"] = decimal(told["charged_nano"])
    told["month"] = format_period(month) if month else None
    return told


def _posting(told: dict[str, Any]) -> Row:
    told["cursor"] = f"{told['id']}.0"
    told["amount"] = decimal(told["nano"])
    told["month"] = format_period(told["month"])
    told["occurred_at"] = timestamp(told["occurred_ms"])
    told["posted_at"] = timestamp(told["posted_ms"])
    told["reverses"] = told["reverses"] or None
    return told


def _told(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """SQL's rows by the names of their columns; SQLAlchemy's own mapping takes ten times as long."""
    if not rows:
        return []
    names = rows[0]._fields
    return [dict(zip(names, row, strict=True)) for row in rows]


async def _prices_named(
    connection: AsyncConnection, statement: Statement
) -> dict[tuple[str, int], Price]:
    """The prices of a statement's lines, by the model's name and the version."""
    names = {line.model for line in statement.lines if line.price_version}
    rows = await connection.execute(
        select(price_versions.c.id, models.c.name)
        .join(models, price_versions.c.model_id == models.c.id)
        .where(models.c.name.in_(sorted(names)))
    )
    named = {row[0]: row[1] for row in rows}
    prices = await prices_of(connection, named)
    return {(named[price_id], price.version): price for price_id, price in prices.items()}


# -- formats -----------------------------------------------------------------------------------


def _csv(columns: tuple[str, ...], rows: list[Row]) -> bytes:
    """RFC 4180; null is an empty field."""
    text = io.StringIO()
    csv.writer(text).writerows(map(itemgetter(*columns), rows))
    return text.getvalue().encode()


def _line(columns: tuple[str, ...]) -> bytes:
    return (",".join(columns) + "\r\n").encode()


def _jsonl(columns: tuple[str, ...], rows: list[Row]) -> bytes:
    values = map(itemgetter(*columns), rows)
    return msgspec.json.Encoder().encode_lines(
        [dict(zip(columns, row, strict=True)) for row in values]
    )


def _cursor(text: str) -> Cursor:
    match = _CURSOR.fullmatch(text or "0")
    if match is None or not text.isascii():
        raise ValueError("cursor: expected what a row before has as its cursor")
    return Cursor(int(match[1]), int(match[2] or 0))


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= PAGE_MAX):  # noqa: PLR2004
        raise ValueError(f"limit: expected a number from 1 to {PAGE_MAX}")
    return int(text)
