"""Usage records into SQL: each once for ever, with its cost and its attempts.

The same request id with another payload is put aside, never written over; so is what no ledger can
hold, with the reason. Both are alarms (``count_quarantined``), and neither holds up the records
around it. Cost is computed here, once, from the price version that the record froze at admission.
Not here: reading records (``gateway.store.usage``).
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import ARRAY, ColumnElement, Text, func, insert, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.books import book_records
from gateway.store.bulk import append
from gateway.store.catalog import prices_of
from gateway.store.database import Database
from gateway.store.entries import lock_books
from gateway.store.rollups import Rollups
from gateway.store.schema import usage_quarantine, usage_records
from quotas.pricing import Line, Price, rate, total
from quotas.record import AttemptEntry, UsageRecord
from quotas.settlement import unbilled_ms

ID_MAX = (1 << 63) - 1
#: What one request may say and be believed: far above any, far below where sums leave 64 bits.
TOKENS_MAX = 1 << 40
COST_NANO_MAX = 10**17
#: The end of year 9999: beyond it there is no date to show.
TIME_MS_MAX = 253_402_300_799_999
ATTEMPTS_MAX = 1_000
#: SQLSTATE classes that speak of a row: data exception, integrity constraint violation.
ROW_STATES = ("22", "23")

Pair = tuple[bytes, UsageRecord]
_encoder = msgspec.json.Encoder()


class Inserted(msgspec.Struct, frozen=True):
    """How many of a batch were new, known already, or put aside."""

    new: int
    duplicate: int
    quarantined: int


class Entry(msgspec.Struct, frozen=True):
    """A new record on its way in. ``row`` is its line of ``usage_records``."""

    record: UsageRecord
    price: Price | None
    lines: tuple[Line, ...]
    row: dict[str, Any]


class _Logged(msgspec.Struct, frozen=True):
    """``AttemptEntry``, which is an array in a record, as an object with names."""

    endpoint_id: int
    endpoint: str
    started_ms: int
    ended_ms: int
    status: int
    prompt_tokens: int
    completion_tokens: int
    choices: int


class Sorted(msgspec.Struct):
    """A batch, told apart. ``aside``: payload, request id, and what is wrong."""

    new: list[Entry]
    duplicates: int
    aside: list[tuple[bytes, str, str]]


async def insert_records(db: Database, batch: Sequence[Pair]) -> Inserted:
    """Insert what is new, in one transaction. Raises only what the database raises when it is away:
    where it refuses a row, the records enter one by one and the refused are put aside.
    """
    try:
        return await _insert(db, batch)
    except (DBAPIError, ValueError, OverflowError) as error:
        if not _speaks_of_a_row(error):
            raise
    each = [await _insert_alone(db, pair) for pair in batch]
    return Inserted(
        sum(one.new for one in each),
        sum(one.duplicate for one in each),
        sum(one.quarantined for one in each),
    )


async def known_ids(db: Database, request_ids: Sequence[str]) -> set[str]:
    """Which of these the ledger has."""
    async with db.read() as connection:
        return set(await _known_hashes(connection, request_ids))


async def count_quarantined(db: Database) -> int:
    """Records put aside and not dealt with yet: an operator deletes the row when it is."""
    async with db.read() as connection:
        return await connection.scalar(select(func.count()).select_from(usage_quarantine)) or 0


def flaw_of(record: UsageRecord) -> str:
    """Why no ledger can hold the record: the name of a field; empty when it is sound."""
    if not (0 < len(record.request_id) <= 64 and record.request_id.isascii()):  # noqa: PLR2004
        return "request_id"
    if not record.request_id.isprintable():
        return "request_id"
    for name, row_id in (
        ("tenant_id", record.tenant_id),
        ("project_id", record.project_id),
        ("key_id", record.key_id),
        ("model_id", record.model_id),
        ("price_id", record.price_id),
    ):
        if not 0 <= row_id <= ID_MAX:
            return name
    for counts in (record.usage, record.billed):
        for name, count in counts.items():
            if not 0 <= count <= TOKENS_MAX:
                return name
    for name, at_ms in (
        ("started_ms", record.started_ms),
        ("ttft_ms", record.ttft_ms),
        ("total_ms", record.total_ms),
    ):
        if not -1 <= at_ms <= TIME_MS_MAX:
            return name
    if not 0 <= record.choices <= TOKENS_MAX or not 0 <= record.status <= 999:  # noqa: PLR2004
        return "choices or status"
    return _flaw_of_attempts(record)


async def _insert(db: Database, batch: Sequence[Pair]) -> Inserted:
    """All or nothing."""
    flaws = [flaw_of(record) for _, record in batch]
    sound = [record for (_, record), flaw in zip(batch, flaws, strict=True) if not flaw]
    async with db.begin() as connection:
        known = await _known_hashes(connection, [record.request_id for record in sound])
        prices = await prices_of(connection, {record.price_id for record in sound})
        found = _sort(batch, flaws, known, prices)
        if found.new:
            await _enter(connection, found.new)
        for payload, request_id, reason in found.aside:
            await _quarantine(connection, payload, request_id, reason)
    return Inserted(len(found.new), found.duplicates, len(found.aside))


async def _enter(connection: AsyncConnection, new: Sequence[Entry]) -> None:
    """Everything that new records leave in the database, in the caller's transaction: their rows,
    what they are charged, and the sums of their hours.
    """
    await lock_books(connection)
    rated = [(each.record, each.price, each.lines) for each in new]
    booked, books = await book_records(connection, rated, time.time_ns() // 1_000_000)
    rollups = Rollups()
    for each, said in zip(new, booked, strict=True):
        row = each.row
        row["month"] = said.month
        row["charged_nano"] = said.charged_nano
        row["covered_tokens"] = said.covered_tokens
        row["operator_cost_nano"] = said.operator_cost_nano
        rollups.add(row)
    columns = list(new[0].row)
    await append(connection, usage_records, columns, [list(each.row.values()) for each in new])
    await books.write(connection)
    await rollups.write(connection)


def _sort(
    batch: Sequence[Pair],
    flaws: Sequence[str],
    known: dict[str, bytes],
    prices: Mapping[int, Price],
) -> Sorted:
    """What of a batch is new, known, or wrong. ``known`` takes in what is new."""
    found = Sorted([], 0, [])
    for (payload, record), said in zip(batch, flaws, strict=True):
        digest = _digest(payload)
        flaw = said
        seen = None if flaw else known.get(record.request_id)
        if seen == digest:
            found.duplicates += 1
            continue
        if seen is not None:
            flaw = "another payload"
        if not flaw:
            price = prices.get(record.price_id)
            lines = _rated(record, price)
            row = _row(payload, digest, record, price, total(lines))
            if row["cost_nano"] <= COST_NANO_MAX:
                known[record.request_id] = digest
                found.new.append(Entry(record, price, lines, row))
                continue
            flaw = "cost_nano"
        found.aside.append((payload, record.request_id, flaw))
    return found


async def _insert_alone(db: Database, pair: Pair) -> Inserted:
    """One record, or the reason why not. Another host may have written it since we looked."""
    payload, record = pair
    for last in (False, True):
        try:
            return await _insert(db, [pair])
        except (DBAPIError, ValueError, OverflowError) as error:
            if not _speaks_of_a_row(error):
                raise
            reason = type(getattr(error, "orig", None) or error).__name__
            if last:
                async with db.begin() as connection:
                    await _quarantine(connection, payload, record.request_id, reason)
    return Inserted(0, 0, 1)


def _speaks_of_a_row(error: Exception) -> bool:
    """Whether the database (or its driver) found a value wrong, rather than being away itself."""
    if not isinstance(error, DBAPIError):
        return True  # an integer beyond SQLite's, a text that is no UTF-8
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state.startswith(ROW_STATES):
        return True
    names = {type(error).__name__, type(error.orig).__name__}
    if names & {"IntegrityError", "DataError"}:
        return True
    return isinstance(error.orig and error.orig.__cause__, ValueError)  # asyncpg: cannot be sent


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:16]


def _flaw_of_attempts(record: UsageRecord) -> str:
    if len(record.attempts) > ATTEMPTS_MAX:
        return "attempts"
    for each in record.attempts:
        if not (each.endpoint.isprintable() and 0 <= each.endpoint_id <= ID_MAX):
            return "attempts: endpoint"
        if not 0 <= each.started_ms <= TIME_MS_MAX or not 0 <= each.ended_ms <= TIME_MS_MAX:
            return "attempts: time"
        for count in (each.prompt_tokens, each.completion_tokens, each.choices, each.status):
            if not 0 <= count <= TOKENS_MAX:
                return "attempts: count"
    return ""


def timestamp(unix_ms: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _known_hashes(
    connection: AsyncConnection, request_ids: Sequence[str]
) -> dict[str, bytes]:
    if not request_ids:
        return {}
    column = usage_records.c.request_id
    among: ColumnElement[bool]
    if connection.dialect.name == "sqlite":
        among = column.in_(request_ids)
    else:  # one parameter, where IN would have as many as there are records
        among = column == func.any(literal(list(request_ids), ARRAY(Text)))
    rows = await connection.execute(select(column, usage_records.c.payload_hash).where(among))
    return {request_id: bytes(digest) for request_id, digest in rows}


def _rated(record: UsageRecord, price: Price | None) -> tuple[Line, ...]:
    """What the record costs at its price, line by line."""
    if price is None:
        return ()
    return rate(price, record.usage, record.operation, record.started_ms)


def _row(
    payload: bytes,
    digest: bytes,
    record: UsageRecord,
    price: Price | None,
    cost_nano: int,
) -> dict[str, Any]:
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
        "attempt_log": _attempt_log(record.attempts),
        "unbilled_ms": unbilled_ms(record),
        "cost_nano": cost_nano,
        "currency": price.currency if price else "",
    }


def _attempt_log(attempts: Sequence[AttemptEntry]) -> str:
    """Attempts by the names of their fields: the log is read by more than this program."""
    return _encoder.encode(
        [
            _Logged(
                each.endpoint_id,
                each.endpoint,
                each.started_ms,
                each.ended_ms,
                each.status,
                each.prompt_tokens,
                each.completion_tokens,
                each.choices,
            )
            for each in attempts
        ]
    ).decode()


async def _quarantine(
    connection: AsyncConnection, payload: bytes, request_id: str, reason: str
) -> None:
    """Put a payload aside, once, under a name that any database can hold."""
    digest = _digest(payload)
    name = request_id.encode("ascii", "backslashreplace").decode()[:64].replace("\0", "\\0")
    same = await connection.scalar(
        select(usage_quarantine.c.id).where(
            usage_quarantine.c.request_id == name, usage_quarantine.c.payload_hash == digest
        )
    )
    if same is None:
        row = {"request_id": name, "payload_hash": digest, "payload": payload, "reason": reason}
        await connection.execute(
            insert(usage_quarantine).values(**row, seen_ms=time.time_ns() // 1_000_000)
        )
