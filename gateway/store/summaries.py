"""Usage summed for a reader, from the sums that the shipper keeps; never from records.

Whole weeks and days come from the sums of these, a range's ragged ends from those by hour; what is
asked of models alone from sums that name nobody. Pages follow the order of the groups (time first,
then ids), which no rename moves; where time is asked for, a page reads little more of it than it
shows. Not here: keeping the sums (``gateway.store.rollups``), who may ask
(``gateway.control.usages``).
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Select, func, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.rollups import (
    DAY_MS,
    DAYS,
    HOUR_MS,
    HOURS,
    MODEL_DAYS,
    MODEL_HOURS,
    SUMMED,
    WEEKS,
    Level,
)
from gateway.store.schema import keys, models, projects, tenants
from quotas.money import decimal

By = Literal["tenant", "project", "key", "model", "day", "hour"]
#: In the order in which groups are sorted; a row begins with those that were asked for.
BY: tuple[By, ...] = ("day", "hour", "tenant", "project", "key", "model")
#: Later than any request: the end of year 9999.
EVER_MS = 253_402_300_800_000
_NUMBER = re.compile(r"[0-9]{1,18}")
_CURRENCY = re.compile(r"[A-Z]{0,3}")
#: Of a page, in hours or days: the first piece of time read, and how much longer the next may be.
FIRST_PIECE = 4
LONGER_AT_MOST = 16
_COUNTS = SUMMED[:-2]
_WIDTHS = {"day": DAY_MS, "hour": HOUR_MS}
_NO_CURSOR = "cursor: expected what an answer before gave as next"
_ID_COLUMN = {
    "tenant": "tenant_id",
    "project": "project_id",
    "key": "key_id",
    "model": "model_id",
}


class Names(msgspec.Struct, frozen=True):
    """Only usage of these; empty = of all. A name is of every row that ever had it."""

    tenant: str = ""
    project: str = ""
    key: str = ""
    model: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """[from, to) in Unix ms, widened to whole hours. ``project_id``: of that one alone; 0 = of all.
    ``after``: the cursor that the page before gave.
    """

    by: tuple[By, ...]
    from_ms: int = 0
    to_ms: int = EVER_MS
    project_id: int = 0
    names: Names = Names()
    after: str = ""
    limit: int = 1000


class Page(msgspec.Struct, frozen=True):
    """``next``: the cursor of the page after, None at the end. Times: what was really summed."""

    data: list[dict[str, Any]]
    next: str | None
    from_ms: int
    to_ms: int


async def summary(db: Database, asked: Asked) -> Page:
    """Raises ``ValueError`` for a cursor that this question did not give."""
    by = tuple(each for each in BY if each in asked.by)
    from_ms = asked.from_ms // HOUR_MS * HOUR_MS
    to_ms = min(-(-asked.to_ms // HOUR_MS) * HOUR_MS, EVER_MS)
    after = _from_cursor(asked.after, len(by)) if asked.after else None
    async with db.read() as connection:
        rows = await _groups(connection, asked, by, (from_ms, to_ms), after)
        page = rows[: asked.limit]
        names = await _names(connection, by, page)
    more = len(rows) > asked.limit
    return Page(
        [_shown(by, row, names) for row in page],
        ".".join(map(str, page[-1][: len(by) + 1])) if more else None,
        from_ms,
        to_ms,
    )


async def _groups(
    connection: AsyncConnection,
    asked: Asked,
    by: Sequence[By],
    span: tuple[int, int],
    after: list[Any] | None,
) -> list[Any]:
    """At most ``limit`` + 1 of them. Where time is asked for it comes first, so that a page is read
    in pieces of time, each as long as what came before says, until there are enough.
    """
    filters, wanted = _filters(asked), asked.limit + 1
    levels = _levels(by, filters)
    width_ms = _WIDTHS.get(by[0]) if by else None
    if width_ms is None:
        query = _query(levels, by, span, filters, after).limit(wanted)
        return list(await connection.execute(query))
    low_ms, high_ms = await _known(connection, levels[-1], span)
    if after is not None:
        low_ms = max(low_ms, after[0] * width_ms)
    rows: list[Any] = []
    piece = wanted if len(by) == 1 else FIRST_PIECE  # of time alone each hour is a group, or none
    while low_ms < high_ms and len(rows) < wanted:
        end_ms = min(low_ms // width_ms * width_ms + piece * width_ms, high_ms)
        query = _query(levels, by, (low_ms, end_ms), filters, after).limit(wanted - len(rows))
        found = list(await connection.execute(query))
        rows += found
        lacking = wanted - len(rows)
        enough = lacking * piece * 5 // (len(found) * 4) if found else piece * LONGER_AT_MOST
        piece = min(max(enough, piece), piece * LONGER_AT_MOST)
        low_ms = end_ms
    return rows


async def _known(
    connection: AsyncConnection, finest: Level, span: tuple[int, int]
) -> tuple[int, int]:
    """What of the span there are sums of, in whole hours; nothing is an empty one."""
    column = finest.table.c[finest.bucket]
    first = await connection.scalar(select(func.min(column)).where(column >= span[0] // HOUR_MS))
    last = await connection.scalar(select(func.max(column)))
    if first is None or last is None:
        return 0, 0
    return first * HOUR_MS, min(span[1], (last + 1) * HOUR_MS)


def _levels(by: Sequence[By], filters: list[tuple[str, Any]]) -> tuple[Level, ...]:
    """The sums that can answer, coarse to fine."""
    named = {_ID_COLUMN[each] for each in by if each in _ID_COLUMN}
    of_models = named | {column for column, _ in filters} <= {"model_id"}
    days, hours = (MODEL_DAYS, MODEL_HOURS) if of_models else (DAYS, HOURS)
    if "hour" in by:
        return (hours,)
    return (days, hours) if of_models or "day" in by else (WEEKS, days, hours)


def _query(
    levels: Sequence[Level],
    by: Sequence[By],
    span: tuple[int, int],
    filters: list[tuple[str, Any]],
    after: list[Any] | None,
) -> Select[Any]:
    """The groups of a span of time behind a cursor, in their order."""
    parts = [_part(level, by, part, filters) for level, *part in _cover(levels, span[0], span[1])]
    if len(parts) == 1:
        ((query, group),) = parts
    else:
        source = union_all(*(each.group_by(*of_it) for each, of_it in parts)).subquery()
        group = [source.c[each] for each in (*by, "currency")]
        query = select(*group, *(func.sum(source.c[name]).label(name) for name in SUMMED))
    if after is not None:
        query = query.where(tuple_(*group) > tuple_(*after))
    return query.group_by(*group).order_by(*group)


def _cover(levels: Sequence[Level], low_ms: int, high_ms: int) -> list[tuple[Level, int, int]]:
    """A span in as coarse sums as may be: (level, from, to) in its buckets."""
    level, *finer = levels
    width_ms, ever = level.width_ms, high_ms >= EVER_MS
    first, last = -(-low_ms // width_ms), -(-high_ms // width_ms) if ever else high_ms // width_ms
    if not finer:
        return [(level, first, last)]
    if first >= last:
        return _cover(finer, low_ms, high_ms)
    parts = [(level, first, last)]
    if low_ms < first * width_ms:
        parts += _cover(finer, low_ms, first * width_ms)
    if last * width_ms < high_ms:
        parts += _cover(finer, last * width_ms, high_ms)
    return parts


def _part(
    level: Level, by: Sequence[By], span: Sequence[int], filters: list[tuple[str, Any]]
) -> tuple[Select[Any], list[ColumnElement[Any]]]:
    """Sums of one level, not grouped yet, and what to group by."""
    table, (low, high) = level.table, span
    bucket = table.c[level.bucket]
    group: list[ColumnElement[Any]] = []
    for each in by:
        if each in _ID_COLUMN:
            group.append(table.c[_ID_COLUMN[each]].label(each))
        else:
            hours_of_days = level.bucket == "hour" and each == "day"
            # + 0: SQLite would else walk all of time in the index's order for one project's.
            group.append((bucket // 24 if hours_of_days else bucket + 0).label(each))
    group.append(table.c.currency)
    query = select(*group, *(func.sum(table.c[name]).label(name) for name in SUMMED))
    if low > 0:
        query = query.where(bucket >= low)
    if high * level.width_ms < EVER_MS:
        query = query.where(bucket < high)
    for column, ids in filters:
        query = query.where(table.c[column].in_(ids))
    return query, group


def _filters(asked: Asked) -> list[tuple[str, Any]]:
    """Columns and the ids that they may have."""
    found: list[tuple[str, Any]] = []
    names = asked.names
    if asked.project_id:
        found.append(("project_id", [asked.project_id]))
    if names.tenant or names.project:
        of_tenant = select(projects.c.id).join(tenants, projects.c.tenant_id == tenants.c.id)
        if names.tenant:
            of_tenant = of_tenant.where(tenants.c.name == names.tenant)
        if names.project:
            of_tenant = of_tenant.where(projects.c.name == names.project)
        found.append(("project_id", of_tenant))
    if names.key:
        found.append(("key_id", select(keys.c.id).where(keys.c.name == names.key)))
    if names.model:
        found.append(("model_id", select(models.c.id).where(models.c.name == names.model)))
    return found


def _from_cursor(text: str, groups: int) -> list[Any]:
    """The last group of the page before: its numbers, then its currency."""
    *numbers, currency = text.split(".")
    if len(numbers) != groups or not _CURRENCY.fullmatch(currency):
        raise ValueError(_NO_CURSOR)
    if not all(_NUMBER.fullmatch(each) for each in numbers):
        raise ValueError(_NO_CURSOR)
    return [*map(int, numbers), currency]


async def _names(
    connection: AsyncConnection, by: Sequence[By], rows: Sequence[Any]
) -> dict[str, dict[int, str]]:
    """Today's names of the ids on a page."""
    paths = {
        "tenant": select(tenants.c.id, tenants.c.name),
        "model": select(models.c.id, models.c.name),
        "project": select(projects.c.id, tenants.c.name + "/" + projects.c.name).join(
            tenants, projects.c.tenant_id == tenants.c.id
        ),
        "key": select(keys.c.id, tenants.c.name + "/" + projects.c.name + "/" + keys.c.name)
        .join(projects, keys.c.project_id == projects.c.id)
        .join(tenants, projects.c.tenant_id == tenants.c.id),
    }
    found: dict[str, dict[int, str]] = {}
    for index, each in enumerate(by):
        if each not in paths:
            continue
        query = paths[each]
        column = query.selected_columns[0]
        known: dict[int, str] = {}
        for ids in _slices(sorted({row[index] for row in rows})):
            rows_of = await connection.execute(query.where(column.in_(ids)))
            known |= {row[0]: row[1] for row in rows_of}
        found[each] = known
    return found


def _slices(ids: Sequence[int], size: int = 5_000) -> Iterable[Sequence[int]]:
    """Databases bound the number of parameters."""
    return (ids[at : at + size] for at in range(0, len(ids), size))


def _shown(by: Sequence[By], row: Any, names: dict[str, dict[int, str]]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for index, each in enumerate(by):
        if each in _WIDTHS:
            shown[each] = _time(each, row[index])
        else:
            shown[each] = names[each].get(row[index])
    *counts, cost, charged = map(int, row[len(by) + 1 :])
    shown |= zip(_COUNTS, counts, strict=True)
    shown["cost"], shown["charged"] = decimal(cost), decimal(charged)
    shown["currency"] = row[len(by)]
    return shown


@lru_cache(maxsize=10_000)
def _time(kind: str, bucket: int) -> str:
    at = datetime.fromtimestamp(bucket * (_WIDTHS[kind] // 1000), UTC)
    return at.date().isoformat() if kind == "day" else at.strftime("%Y-%m-%dT%H:00:00Z")
