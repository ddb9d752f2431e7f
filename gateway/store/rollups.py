"""Sums of usage by hour, day and week, kept in the transactions that move the ledger.

Two kinds of rows: of a key and model, and of a model whoever asked, for what is asked of all. An
hour is the one that a request was admitted in (UTC): a late record, a reversal and a new price
enter the hour of their record, whenever they come. Costs are the ledger's; ``charged_nano`` follows
corrections. ``differences`` compares with the ledger, ``rebuild`` makes the sums anew from it.
Not here: reading the sums (``gateway.store.summaries``), months and statements.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.entries import add_up, lock_books
from gateway.store.schema import (
    model_days,
    model_hours,
    usage_days,
    usage_hours,
    usage_records,
    usage_weeks,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
#: Weeks begin where the first one of 1970 did, on Thursdays: nobody asks for them, they only add up.
WEEK_MS = 7 * DAY_MS
#: Of sums made or compared at once.
SPAN_MS = 4 * WEEK_MS
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
_OF_KEY = ("tenant_id", "project_id", "key_id", "model_id")
_OF_MODEL = ("model_id",)


class Level(NamedTuple):
    """One table of sums: ``width_ms`` of time a row, of ``whose`` and a currency."""

    table: Table
    bucket: str
    width_ms: int
    whose: tuple[str, ...]

    @property
    def group(self) -> tuple[str, ...]:
        return (*self.whose, self.bucket, "currency")


HOURS = Level(usage_hours, "hour", HOUR_MS, _OF_KEY)
DAYS = Level(usage_days, "day", DAY_MS, _OF_KEY)
WEEKS = Level(usage_weeks, "week", WEEK_MS, _OF_KEY)
MODEL_HOURS = Level(model_hours, "hour", HOUR_MS, _OF_MODEL)
MODEL_DAYS = Level(model_days, "day", DAY_MS, _OF_MODEL)
LEVELS = (HOURS, DAYS, WEEKS, MODEL_HOURS, MODEL_DAYS)
Row = Mapping[str, Any] | RowMapping
Group = tuple[Any, ...]  # the ids of a level's ``whose``, bucket, currency
Sums = dict[Group, list[int]]

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
#: In the order of the tables' own, so that what is read together lies together.
_LEDGER = """
    SELECT {whose}, bucket, currency,
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
    GROUP BY {whose}, bucket, currency ORDER BY bucket, {whose}
"""


class Rollups:
    """What one transaction adds to the sums. Collected, then written at once."""

    def __init__(self) -> None:
        self._hours: Sums = {}

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
        days = _merged(self._hours, lambda group: (*group[:4], group[4] // 24, group[5]))
        weeks = _merged(days, lambda group: (*group[:4], group[4] // 7, group[5]))
        hours_of_models = _merged(self._hours, lambda group: group[3:])
        days_of_models = _merged(
            hours_of_models, lambda group: (group[0], group[1] // 24, group[2])
        )
        added = (self._hours, days, weeks, hours_of_models, days_of_models)
        for level, groups in zip(LEVELS, added, strict=True):
            await add_up(connection, level.table, SUMMED, _rows(groups, level))

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
    """Make every sum anew from the ledger, so many whole weeks at a time; the number of rows made.
    Records go on arriving between them.
    """
    made = 0
    for from_ms, to_ms in await _spans(db, at_most_ms):
        async with db.begin() as connection:
            await lock_books(connection)
            for level in LEVELS:
                where = {"from_ms": from_ms, "to_ms": to_ms}
                await connection.execute(
                    level.table.delete().where(*_within(level, from_ms, to_ms))
                )
                into = f"INSERT INTO {level.table.name} ({', '.join((*level.group, *SUMMED))})"
                # Names and numbers of this module alone; what varies is bound.
                done = await connection.execute(text(into + _ledger_sql(level)), where)
                made += done.rowcount
    return made


async def differences(db: Database, *, at_most: int = 100) -> list[dict[str, Any]]:
    """Where sums and ledger differ, at most so many; empty when they agree. Four weeks at a time, each
    a consistent read.
    """
    found: list[dict[str, Any]] = []
    for from_ms, to_ms in await _spans(db, SPAN_MS):
        async with db.read() as connection:
            if not db.is_sqlite:
                await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            for level in LEVELS:
                found += await _compare(connection, level, from_ms, to_ms)
        if len(found) >= at_most:
            break
    return found[:at_most]


async def _compare(
    connection: AsyncConnection, level: Level, from_ms: int, to_ms: int
) -> list[dict[str, Any]]:
    span = {"from_ms": from_ms, "to_ms": to_ms}
    rows = await connection.execute(text(_ledger_sql(level)), span)
    groups = len(level.group)
    ledger = {tuple(row[:groups]): [int(each) for each in row[groups:]] for row in rows}
    kept = await connection.execute(
        select(*(level.table.c[name] for name in (*level.group, *SUMMED))).where(
            *_within(level, from_ms, to_ms)
        )
    )
    nothing = [0] * len(SUMMED)
    found = []
    for row in kept:
        group, sums = tuple(row[:groups]), list(row[groups:])
        right = ledger.pop(group, nothing)
        if right != sums:
            found.append(_difference(level, group, right, sums))
    return found + [_difference(level, group, right, nothing) for group, right in ledger.items()]


def _within(level: Level, from_ms: int, to_ms: int) -> tuple[ColumnElement[bool], ...]:
    column = level.table.c[level.bucket]
    return column >= from_ms // level.width_ms, column < to_ms // level.width_ms


async def _spans(db: Database, at_most_ms: int) -> list[tuple[int, int]]:
    """[from, to) in whole weeks over all that the ledger or a sum has."""
    columns = [(level.table.c[level.bucket], level.width_ms) for level in LEVELS]
    weeks: list[int] = []
    async with db.read() as connection:
        for column, width_ms in ((usage_records.c.started_ms, 1), *columns):
            for which in (func.min, func.max):  # both in one query would read the whole index
                found = await connection.scalar(select(which(column)))
                if found is not None:
                    weeks.append(found * width_ms // WEEK_MS)
    if not weeks:
        return []
    begin, end = min(weeks) * WEEK_MS, (max(weeks) + 1) * WEEK_MS
    return [(at, min(end, at + at_most_ms)) for at in range(begin, end, at_most_ms)]


def _ledger_sql(level: Level) -> str:
    return _LEDGER.format(
        width=level.width_ms,
        whose=", ".join(level.whose),
        corrected=_CORRECTED.format(width=level.width_ms),
    )


def _merged(groups: Sums, to: Callable[[Group], Group]) -> Sums:
    """The same sums in coarser groups."""
    merged: Sums = {}
    for group, sums in groups.items():
        coarser = to(group)
        before = merged.get(coarser)
        merged[coarser] = sums if before is None else list(map(int.__add__, before, sums))
    return merged


def _rows(groups: Mapping[Group, Iterable[int]], level: Level) -> list[dict[str, Any]]:
    """In one order in every process, so that no two wait for each other."""
    names = (*level.group, *SUMMED)
    return [dict(zip(names, (*group, *groups[group]), strict=True)) for group in sorted(groups)]


def _difference(level: Level, group: Group, ledger: list[int], kept: list[int]) -> dict[str, Any]:
    return {
        **dict(zip(level.group, group, strict=True)),
        "ledger": dict(zip(SUMMED, ledger, strict=True)),
        "kept": dict(zip(SUMMED, kept, strict=True)),
    }
