"""Usage summed for a reader, from the sums by hour and day that the shipper keeps; never from records.

Whole days come from the sums by day, a range's ragged ends from those by hour. Pages follow the order
of the groups (time first, then ids), which no rename moves. Not here: keeping the sums
(``gateway.store.rollups``), who may ask (``gateway.control.usages``).
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    func,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database
from gateway.store.rollups import DAY_MS, HOUR_MS, SUMMED
from gateway.store.schema import keys, models, projects, tenants, usage_days, usage_hours
from quotas.money import decimal

By = Literal["tenant", "project", "key", "model", "day", "hour"]
#: In the order in which groups are sorted; a row begins with those that were asked for.
BY: tuple[By, ...] = ("day", "hour", "tenant", "project", "key", "model")
#: Later than any request: the end of year 9999.
EVER_MS = 253_402_300_800_000
_NUMBER = re.compile(r"[0-9]{1,18}")
_CURRENCY = re.compile(r"[A-Z]{0,3}")
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
    parts = _parts(by, from_ms, to_ms, _filters(asked))
    source = union_all(*parts).subquery()
    group: list[ColumnElement[Any]] = [source.c[each] for each in (*by, "currency")]
    query = (
        select(*group, *(func.sum(source.c[name]).label(name) for name in SUMMED))
        .group_by(*group)
        .order_by(*group)
        .limit(asked.limit + 1)
    )
    if asked.after:
        query = query.where(tuple_(*group) > tuple_(*_from_cursor(asked.after, len(by))))
    async with db.read() as connection:
        rows = list(await connection.execute(query))
        page = rows[: asked.limit]
        names = await _names(connection, by, page)
    more = len(rows) > asked.limit
    return Page(
        [_shown(by, row, names) for row in page],
        ".".join(map(str, page[-1][: len(by) + 1])) if more else None,
        from_ms,
        to_ms,
    )


def _parts(
    by: Sequence[By], from_ms: int, to_ms: int, filters: list[tuple[str, Any]]
) -> list[Select[Any]]:
    """What to add up: days where a whole day may be taken, else hours."""
    first_day, last_day = -(-from_ms // DAY_MS), to_ms // DAY_MS
    hours = (from_ms // HOUR_MS, to_ms // HOUR_MS)
    if "hour" in by or first_day >= last_day:
        return [_part(usage_hours, by, *hours, filters)]
    parts = [_part(usage_days, by, first_day, last_day, filters)]
    if hours[0] < first_day * 24:
        parts.append(_part(usage_hours, by, hours[0], first_day * 24, filters))
    if last_day * 24 < hours[1]:
        parts.append(_part(usage_hours, by, last_day * 24, hours[1], filters))
    return parts


def _part(
    table: Table, by: Sequence[By], low: int, high: int, filters: list[tuple[str, Any]]
) -> Select[Any]:
    bucket = table.c.hour if table is usage_hours else table.c.day
    columns: list[ColumnElement[Any]] = []
    for each in by:
        if each in _ID_COLUMN:
            columns.append(table.c[_ID_COLUMN[each]].label(each))
        else:
            hours_of_days = table is usage_hours and each == "day"
            # + 0: SQLite would else read a row at a time in the index's order, at thrice the time.
            columns.append((bucket // 24 if hours_of_days else bucket + 0).label(each))
    group = [*columns, table.c.currency]
    query = select(*group, *(func.sum(table.c[name]).label(name) for name in SUMMED)).group_by(
        *group
    )
    if low > 0:
        query = query.where(bucket >= low)
    if high < EVER_MS // (HOUR_MS if table is usage_hours else DAY_MS):
        query = query.where(bucket < high)
    for column, ids in filters:
        query = query.where(table.c[column].in_(ids))
    return query


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
        if each == "day":
            shown[each] = _moment(row[index] * DAY_MS).date().isoformat()
        elif each == "hour":
            shown[each] = _moment(row[index] * HOUR_MS).strftime("%Y-%m-%dT%H:00:00Z")
        else:
            shown[each] = names[each].get(row[index])
    sums = dict(zip(SUMMED, map(int, row[len(by) + 1 :]), strict=True))
    cost, charged = sums.pop("cost_nano"), sums.pop("charged_nano")
    return {
        **shown,
        **sums,
        "cost": decimal(cost),
        "charged": decimal(charged),
        "currency": row[len(by)],
    }


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
