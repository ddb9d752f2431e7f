"""Alerts in SQL: what is watched, whether it is raised, and each alert once.

An alert's id is unique, so a second telling of the same changes nothing; what can come again (a
balance that falls twice) counts its crossings. Both are written in one transaction. Not here: what is
compared with what (``gateway.control.alerts``), sending (``gateway.control.deliveries``).
"""

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.events import Event
from gateway.store.database import Database
from gateway.store.schema import alert_states, alerts, sinks, tenants, usage_records


class Watched(msgspec.Struct, frozen=True):
    """A tenant who is to be told of below an amount."""

    tenant_id: int
    name: str
    low_nano: int


class Spent(msgspec.Struct, frozen=True):
    """What budgets ask of a record."""

    id: int
    tenant_id: int
    project_id: int
    key_id: int
    model_id: int
    currency: str
    started_ms: int
    cost_nano: int


async def is_anybody_told(connection: AsyncConnection) -> bool:
    query = select(sinks.c.id).where(sinks.c.kind == "webhook", sinks.c.deleted_at.is_(None))
    return await connection.scalar(query.limit(1)) is not None


async def raise_once(db: Database, event: Event) -> bool:
    """Write an alert; False where it was written before."""
    async with db.begin() as connection:
        return await _write(connection, event)


async def cross(
    db: Database, subject: str, *, raised: bool, told: Callable[[int], Event | None]
) -> None:
    """Note whether something is raised now. Where that is new, ``told`` gives its alert (None: none)
    from the number of times it was raised. What was never seen counts as not raised before.
    """
    async with db.begin() as connection:
        query = select(alert_states).where(alert_states.c.subject == subject)
        row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
        times = (row["times"] if row else 0) + int(raised)
        values = {"raised": int(raised), "times": times}
        if row is None:
            await connection.execute(insert(alert_states).values(subject=subject, **values))
            changed = raised
        else:
            changed = bool(row["raised"]) != raised
            if changed:
                one = alert_states.c.subject == subject
                await connection.execute(update(alert_states).where(one).values(**values))
        event = told(times) if changed else None
        if event is not None:
            await _write(connection, event)


async def watched_tenants(connection: AsyncConnection) -> list[Watched]:
    rows = await connection.execute(
        select(tenants.c.id, tenants.c.name, tenants.c.low_balance_nano).where(
            tenants.c.deleted_at.is_(None), tenants.c.low_balance_nano.is_not(None)
        )
    )
    return [Watched(*row) for row in rows]


async def last_record(connection: AsyncConnection) -> int:
    return int(await connection.scalar(select(func.max(usage_records.c.id))) or 0)


async def spent_by(
    connection: AsyncConnection,
    column: str,
    model_id: int,
    currency: str,
    between_ms: tuple[int, int],
    last_id: int,
) -> dict[int, int]:
    """Nano-units by ``tenant_id``, ``project_id`` or ``key_id``, of records admitted in [from, to) up
    to a row; ``model_id`` 0: of every model.
    """
    owner = usage_records.c[column]
    query = select(owner, func.sum(usage_records.c.cost_nano)).where(
        usage_records.c.currency == currency,
        usage_records.c.started_ms >= between_ms[0],
        usage_records.c.started_ms < between_ms[1],
        usage_records.c.id <= last_id,
    )
    if model_id:
        query = query.where(usage_records.c.model_id == model_id)
    rows = await connection.execute(query.group_by(owner))
    return {int(row_id): int(nano) for row_id, nano in rows}


async def spent_since(
    connection: AsyncConnection, after_id: int, last_id: int, limit: int
) -> list[Spent]:
    """Records behind one row and up to another, in order."""
    columns = [usage_records.c[name] for name in Spent.__struct_fields__]
    rows: Any = await connection.execute(
        select(*columns)
        .where(usage_records.c.id > after_id, usage_records.c.id <= last_id)
        .order_by(usage_records.c.id)
        .limit(limit)
    )
    return [Spent(*row) for row in rows]


async def _write(connection: AsyncConnection, event: Event) -> bool:
    known = await connection.scalar(select(alerts.c.id).where(alerts.c.event_id == event.id))
    if known is not None:
        return False
    text = msgspec.json.encode(event).decode()
    await connection.execute(insert(alerts).values(event_id=event.id, event=text))
    return True
