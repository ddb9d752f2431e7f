"""Sums of usage by hour and by day, kept in the transactions that move the ledger.

An hour is the one that a request was admitted in (UTC): a late record, a reversal and a new price
enter the hour of their record, whenever they come. Costs are the ledger's; ``charged_nano`` follows
corrections. ``differences`` compares with the ledger, ``rebuild`` makes the sums anew from it.
Not here: reading the sums (``gateway.store.usage``), months and statements.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import RowMapping, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.entries import add_up, lock_books
from gateway.store.schema import usage_days, usage_hours, usage_records

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
#: Of sums made or compared at once.
SPAN_MS = 31 * DAY_MS
#: What is summed, in the order of a group's list of sums.
SUMMED = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "unbilled_ms",
    "cost_nano",
    "charged_nano",
)
_COUNTS = SUMMED[1:]
_CHARGED = len(SUMMED) - 1
_KINDS: tuple[tuple[Table, str, int], ...] = (
    (usage_hours, "hour", HOUR_MS),
    (usage_days, "day", DAY_MS),
)
Row = Mapping[str, Any] | RowMapping
Group = tuple[int, int, int, int, int, str]  # tenant, project, key, model, bucket, currency

#: What corrections moved of each record's charge. A correction's key is "reversal:ID:3" or
#: "reprice:ID:3"; what is posted to the tenant's accounts is what it moves.
_CORRECTED = """
    SELECT r.tenant_id, r.project_id, r.key_id, r.model_id, r.started_ms / {width} AS bucket,
           p.currency, p.nano
    FROM postings AS p JOIN usage_records AS r ON r.request_id = substr(
        rtrim(p.entry_key, '0123456789'), CASE p.kind WHEN 'reversal' THEN 10 ELSE 9 END,
        length(rtrim(p.entry_key, '0123456789')) - CASE p.kind WHEN 'reversal' THEN 10 ELSE 9 END)
    WHERE p.kind IN ('reversal', 'reprice')
      AND p.account IN ('customer_prepaid', 'receivable', 'promotional')
      AND r.started_ms >= :from_ms AND r.started_ms < :to_ms
"""
_LEDGER = """
    SELECT tenant_id, project_id, key_id, model_id, bucket, currency,
           sum(requests) AS requests, sum(prompt_tokens) AS prompt_tokens,
           sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens,
           sum(reasoning_tokens) AS reasoning_tokens, sum(unbilled_ms) AS unbilled_ms,
           sum(cost_nano) AS cost_nano, sum(charged_nano) AS charged_nano
    FROM (
        SELECT tenant_id, project_id, key_id, model_id, started_ms / {width} AS bucket, currency,
               1 AS requests, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
               unbilled_ms, cost_nano, charged_nano
        FROM usage_records WHERE started_ms >= :from_ms AND started_ms < :to_ms
        UNION ALL
        SELECT tenant_id, project_id, key_id, model_id, bucket, currency,
               0, 0, 0, 0, 0, 0, 0, nano FROM ({corrected}) AS c
    ) AS e
    GROUP BY tenant_id, project_id, key_id, model_id, bucket, currency
"""


class Rollups:
    """What one transaction adds to the sums. Collected, then written at once."""

    def __init__(self) -> None:
        self._hours: dict[Group, list[int]] = {}

    def add(self, row: Row) -> None:
        """A new row of ``usage_records``."""
        sums = self._sums(row, row["started_ms"], row["currency"])
        sums[0] += 1
        for index, name in enumerate(_COUNTS, 1):
            sums[index] += row[name]

    def correct(self, row: Row, currency: str, nano: int) -> None:
        """A correction moved what the record of this row was charged."""
        self._sums(row, row["started_ms"], currency)[_CHARGED] += nano

    async def write(self, connection: AsyncConnection) -> None:
        days: dict[Group, list[int]] = {}
        for (*whose, hour, currency), sums in self._hours.items():
            group: Group = (*whose, hour // 24, currency)  # type: ignore[assignment]  # four ids
            before = days.get(group)
            days[group] = sums if before is None else list(map(int.__add__, before, sums))
        for (table, bucket, _), groups in zip(_KINDS, (self._hours, days), strict=True):
            await add_up(connection, table, SUMMED, _rows(groups, bucket))

    def _sums(self, row: Row, at_ms: int, currency: str) -> list[int]:
        group = (
            row["tenant_id"],
            row["project_id"],
            row["key_id"],
            row["model_id"],
            max(0, at_ms) // HOUR_MS,  # -1 is a time of nobody's; SQL rounds it up
            currency,
        )
        found = self._hours.get(group)
        if found is None:
            found = self._hours[group] = [0] * len(SUMMED)
        return found


async def rebuild(db: Database, *, at_most_ms: int = SPAN_MS) -> int:
    """Make every sum anew from the ledger, a month at a time; the number of rows made. Records go on
    arriving between two months.
    """
    made = 0
    for from_ms, to_ms in await _spans(db, at_most_ms):
        async with db.begin() as connection:
            await lock_books(connection)
            for table, bucket, width in _KINDS:
                where = {"from_ms": from_ms, "to_ms": to_ms}
                await connection.execute(
                    table.delete().where(
                        table.c[bucket] >= from_ms // width, table.c[bucket] < to_ms // width
                    )
                )
                columns = ("tenant_id", "project_id", "key_id", "model_id", bucket, "currency")
                into = f"INSERT INTO {table.name} ({', '.join((*columns, *SUMMED))})"
                # Names and numbers of this module alone; what varies is bound.
                done = await connection.execute(text(into + _ledger_sql(width)), where)
                made += done.rowcount
    return made


async def differences(db: Database, *, at_most: int = 100) -> list[dict[str, Any]]:
    """Where sums and ledger differ, at most so many; empty when they agree. A month at a time, each
    a consistent read.
    """
    found: list[dict[str, Any]] = []
    for from_ms, to_ms in await _spans(db, SPAN_MS):
        async with db.read() as connection:
            if not db.is_sqlite:
                await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            for table, bucket, width in _KINDS:
                found += await _compare(connection, table, bucket, width, from_ms, to_ms)
        if len(found) >= at_most:
            break
    return found[:at_most]


async def _compare(
    connection: AsyncConnection, table: Table, bucket: str, width: int, from_ms: int, to_ms: int
) -> list[dict[str, Any]]:
    span = {"from_ms": from_ms, "to_ms": to_ms}
    rows = await connection.execute(text(_ledger_sql(width)), span)
    ledger = {tuple(row[:6]): [int(each) for each in row[6:]] for row in rows}
    names = ("tenant_id", "project_id", "key_id", "model_id", bucket, "currency", *SUMMED)
    kept = await connection.execute(
        select(*(table.c[name] for name in names)).where(
            table.c[bucket] >= from_ms // width, table.c[bucket] < to_ms // width
        )
    )
    nothing = [0] * len(SUMMED)
    found = []
    for row in kept:
        group, sums = tuple(row[:6]), list(row[6:])
        right = ledger.pop(group, nothing)
        if right != sums:
            found.append(_difference(bucket, group, right, sums))
    return found + [_difference(bucket, group, right, nothing) for group, right in ledger.items()]


async def _spans(db: Database, at_most_ms: int) -> list[tuple[int, int]]:
    """[from, to) in whole days over all that the ledger or a sum has."""
    async with db.read() as connection:
        first, last = (
            await connection.execute(
                select(func.min(usage_records.c.started_ms), func.max(usage_records.c.started_ms))
            )
        ).one()
        low, high = (
            await connection.execute(select(func.min(usage_days.c.day), func.max(usage_days.c.day)))
        ).one()
        hours = (
            await connection.execute(
                select(func.min(usage_hours.c.hour), func.max(usage_hours.c.hour))
            )
        ).one()
    days = [each // DAY_MS for each in (first, last) if each is not None]
    days += [each for each in (low, high) if each is not None]
    days += [each // 24 for each in hours if each is not None]
    if not days:
        return []
    begin, end = min(days) * DAY_MS, (max(days) + 1) * DAY_MS
    return [(at, min(end, at + at_most_ms)) for at in range(begin, end, at_most_ms)]


def _ledger_sql(width: int) -> str:
    return _LEDGER.format(width=width, corrected=_CORRECTED.format(width=width))


def _rows(groups: Mapping[Group, Iterable[int]], bucket: str) -> list[dict[str, Any]]:
    """In one order in every process, so that no two wait for each other."""
    names = ("tenant_id", "project_id", "key_id", "model_id", bucket, "currency", *SUMMED)
    return [dict(zip(names, (*group, *groups[group]), strict=True)) for group in sorted(groups)]


def _difference(
    bucket: str, group: tuple[Any, ...], ledger: list[int], kept: list[int]
) -> dict[str, Any]:
    names = ("tenant_id", "project_id", "key_id", "model_id", bucket, "currency")
    return {
        **dict(zip(names, group, strict=True)),
        "ledger": dict(zip(SUMMED, ledger, strict=True)),
        "kept": dict(zip(SUMMED, kept, strict=True)),
    }
