"""Sinks in SQL: what is declared of them, how far each has come, and what was parked.

A cursor moves from where its mover saw it and from nowhere else, so that a sender which was replaced
moves nothing. Secrets are not here: only where they are. Not here: what is sent
(``gateway.store.outbox``), sending (``gateway.control.deliveries``).
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.events import Event
from gateway.store.accounts import NotFound, insert_row
from gateway.store.database import Database
from gateway.store.schema import alerts, parked_events, postings, sink_cursors, sinks, usage_records

#: Beyond it nobody needs the exact number of events that wait.
COUNTED_MAX = 100_000
FAILURE_CHARS = 300


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sink as declared. Secrets are named by variable or file. ``events``: a webhook's."""

    url: str
    format: Literal["cloudevents", "lago", "stripe", "webhook"] = "cloudevents"
    batch: int = 100
    timeout_s: float = 10.0
    source: str = "tokenfactory"
    event_name: str = ""
    value: str = "total_tokens"
    subjects: dict[str, str] = {}
    tenants: list[str] | None = None
    events: list[str] | None = None
    auth_header: str = "authorization"
    auth_env: str | None = None
    auth_file: str | None = None
    secret_env: str | None = None
    secret_file: str | None = None
    ca_file: str | None = None


class Cursor(msgspec.Struct, frozen=True):
    """Ids up to which everything was delivered or parked."""

    record_id: int = 0
    posting_id: int = 0
    alert_id: int = 0


class Sink(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    kind: str
    options: Options
    cursor: Cursor
    failures: int
    retry_ms: int


class Parked(msgspec.Struct, frozen=True):
    id: int
    event: Event


class Deposed(Exception):
    """Another sender has moved the cursor: whoever gets this sends no more."""


# -- declared ----------------------------------------------------------------------------------


async def set_sink(
    connection: AsyncConnection, name: str, kind: str, options: Options, start: str, now_ms: int
) -> tuple[int, Literal["created", "updated", "same"]]:
    """Raises ``ValueError`` where the name is one of the other kind. ``start``: ``beginning`` or
    ``now``, of a new one.
    """
    text = msgspec.json.encode(options).decode()
    query = select(sinks).where(sinks.c.name == name, sinks.c.deleted_at.is_(None))
    known = (await connection.execute(query)).mappings().one_or_none()
    if known is None:
        row_id = await insert_row(
            connection, sinks, name=name, kind=kind, options=text, created_ms=now_ms
        )
        await _begin(connection, row_id, start)
        return row_id, "created"
    row_id = int(known["id"])
    if known["kind"] != kind:
        raise ValueError(f"{name!r} is a {known['kind']} already, expected another name")
    if known["options"] == text:
        return row_id, "same"
    await connection.execute(update(sinks).where(sinks.c.id == row_id).values(options=text))
    await _due(connection, row_id)
    return row_id, "updated"


async def _begin(connection: AsyncConnection, sink_id: int, start: str) -> None:
    """Alerts begin now; usage does where that was asked for."""
    row: dict[str, Any] = {"record_id": 0, "posting_id": 0}
    row["alert_id"] = await _last(connection, alerts)
    if start == "now":
        row["record_id"] = await _last(connection, usage_records)
        row["posting_id"] = await _last(connection, postings)
    row |= {"delivered": 0, "delivered_ms": 0, "failures": 0, "retry_ms": 0, "failure": ""}
    await connection.execute(insert(sink_cursors).values(sink_id=sink_id, **row))


async def _last(connection: AsyncConnection, table: Any) -> int:
    return int(await connection.scalar(select(func.coalesce(func.max(table.c.id), 0))) or 0)


# -- sending -----------------------------------------------------------------------------------


async def read_sinks(connection: AsyncConnection) -> list[Sink]:
    """The living ones."""
    rows = (await connection.execute(_living())).mappings()
    return [_sink(row) for row in rows]


async def read_sink(connection: AsyncConnection, sink_id: int) -> Sink | None:
    row = (await connection.execute(_living().where(sinks.c.id == sink_id))).mappings().first()
    return None if row is None else _sink(row)


async def advance(db: Database, sink: Sink, to: Cursor, delivered: int, now_ms: int) -> None:
    """What lies before ``to`` has arrived. Raises ``Deposed``."""
    async with db.begin() as connection:
        await _move(connection, sink, to, delivered, now_ms)


async def park(
    db: Database, sink: Sink, to: Cursor, event: Event, reason: str, now_ms: int
) -> None:
    """Put an event aside and go on behind it. Raises ``Deposed``."""
    async with db.begin() as connection:
        await _move(connection, sink, to, 0, now_ms)
        known = await connection.scalar(
            select(parked_events.c.id).where(
                parked_events.c.sink_id == sink.id, parked_events.c.event_id == event.id
            )
        )
        if known is None:
            text = msgspec.json.encode(event).decode()
            row = {"event_id": event.id, "event": text, "reason": reason[:FAILURE_CHARS]}
            await connection.execute(
                insert(parked_events).values(sink_id=sink.id, parked_ms=now_ms, **row)
            )


async def note_failure(db: Database, sink_id: int, failures: int, retry_ms: int, why: str) -> None:
    async with db.begin() as connection:
        await connection.execute(
            update(sink_cursors)
            .where(sink_cursors.c.sink_id == sink_id)
            .values(failures=failures, retry_ms=retry_ms, failure=why[:FAILURE_CHARS])
        )


async def read_queued(connection: AsyncConnection, sink_id: int, limit: int) -> list[Parked]:
    """Parked events that are to be sent again, in the order they were parked."""
    rows = await connection.execute(
        select(parked_events.c.id, parked_events.c.event)
        .where(parked_events.c.sink_id == sink_id, parked_events.c.queued == 1)
        .order_by(parked_events.c.id)
        .limit(limit)
    )
    return [Parked(row.id, msgspec.json.decode(row.event, type=Event)) for row in rows]


async def unpark(db: Database, sink_id: int, parked_id: int, now_ms: int) -> None:
    """It has arrived."""
    async with db.begin() as connection:
        await connection.execute(delete(parked_events).where(parked_events.c.id == parked_id))
        await connection.execute(
            update(sink_cursors)
            .where(sink_cursors.c.sink_id == sink_id)
            .values(
                delivered=sink_cursors.c.delivered + 1,
                delivered_ms=now_ms,
                failures=0,
                retry_ms=0,
                failure="",
            )
        )


async def park_again(db: Database, parked_id: int, reason: str) -> None:
    """It was refused again."""
    async with db.begin() as connection:
        await connection.execute(
            update(parked_events)
            .where(parked_events.c.id == parked_id)
            .values(queued=0, reason=reason[:FAILURE_CHARS])
        )


async def _move(
    connection: AsyncConnection, sink: Sink, to: Cursor, delivered: int, now_ms: int
) -> None:
    seen = sink.cursor
    values: dict[str, Any] = {
        **msgspec.structs.asdict(to),
        "failures": 0,
        "retry_ms": 0,
        "failure": "",
    }
    if delivered:
        values |= {"delivered": sink_cursors.c.delivered + delivered, "delivered_ms": now_ms}
    moved = await connection.execute(
        update(sink_cursors)
        .where(
            sink_cursors.c.sink_id == sink.id,
            sink_cursors.c.record_id == seen.record_id,
            sink_cursors.c.posting_id == seen.posting_id,
            sink_cursors.c.alert_id == seen.alert_id,
        )
        .values(**values)
    )
    if moved.rowcount != 1:
        raise Deposed(sink.name)


# -- for operators -----------------------------------------------------------------------------


async def list_sinks(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Every living sink with its state; times in Unix ms, 0 = never. ``waiting`` counts rows behind
    the cursor, up to ``COUNTED_MAX``.
    """
    rows = (await connection.execute(_living().order_by(sinks.c.name))).mappings().all()
    found = []
    for row in rows:
        parked = await connection.execute(
            select(func.count(), func.coalesce(func.sum(parked_events.c.queued), 0)).where(
                parked_events.c.sink_id == row["id"]
            )
        )
        all_parked, queued = parked.one()
        shown = {name: row[name] for name in ("id", "name", "kind", "delivered", "delivered_ms")}
        shown |= {name: row[name] for name in ("failures", "retry_ms", "failure")}
        shown |= {"parked": int(all_parked), "queued": int(queued)}
        shown["waiting"] = await _waiting(connection, _sink(row))
        found.append(shown | {"options": msgspec.json.decode(row["options"])})
    return found


async def count_trouble(db: Database) -> tuple[int, int]:
    """(parked events, sinks whose last try failed)."""
    live = select(sinks.c.id).where(sinks.c.deleted_at.is_(None))
    parked = select(func.count()).where(parked_events.c.sink_id.in_(live))
    failing = select(func.count()).where(
        sink_cursors.c.failures > 0, sink_cursors.c.sink_id.in_(live)
    )
    async with db.read() as connection:
        return await connection.scalar(parked) or 0, await connection.scalar(failing) or 0


async def list_parked(
    connection: AsyncConnection, sink_id: int, limit: int
) -> list[dict[str, Any]]:
    """The oldest first."""
    rows = await connection.execute(
        select(parked_events)
        .where(parked_events.c.sink_id == sink_id)
        .order_by(parked_events.c.id)
        .limit(limit)
    )
    return [
        {
            "id": row["event_id"],
            "reason": row["reason"],
            "parked_ms": row["parked_ms"],
            "queued": bool(row["queued"]),
            "event": msgspec.json.decode(row["event"]),
        }
        for row in rows.mappings()
    ]


async def retry(connection: AsyncConnection, name: str, event_ids: Sequence[str] | None) -> int:
    """Make a sink due now, and send its parked events (all, or these) again; how many. Raises
    ``NotFound``.
    """
    sink_id = await connection.scalar(
        select(sinks.c.id).where(sinks.c.name == name, sinks.c.deleted_at.is_(None))
    )
    if sink_id is None:
        raise NotFound(f"no sink {name}")
    parked = parked_events.c.sink_id == sink_id
    for event_id in event_ids or ():
        if not await connection.scalar(
            select(parked_events.c.id).where(parked, parked_events.c.event_id == event_id)
        ):
            raise NotFound(f"sink {name} has no parked event {event_id}")
    query = update(parked_events).where(parked)
    if event_ids is not None:
        query = query.where(parked_events.c.event_id.in_(event_ids))
    queued = await connection.execute(query.values(queued=1))
    await _due(connection, int(sink_id))
    return queued.rowcount


async def _due(connection: AsyncConnection, sink_id: int) -> None:
    await connection.execute(
        update(sink_cursors).where(sink_cursors.c.sink_id == sink_id).values(failures=0, retry_ms=0)
    )


async def _waiting(connection: AsyncConnection, sink: Sink) -> int:
    table, after = (
        (usage_records, sink.cursor.record_id)
        if sink.kind == "sink"
        else (alerts, sink.cursor.alert_id)
    )
    some = select(table.c.id).where(table.c.id > after).limit(COUNTED_MAX).subquery()
    return int(await connection.scalar(select(func.count()).select_from(some)) or 0)


def _living() -> Select[Any]:
    cursor = [column for column in sink_cursors.c if column.name != "sink_id"]
    return (
        select(sinks, *cursor)
        .join(sink_cursors, sink_cursors.c.sink_id == sinks.c.id)
        .where(sinks.c.deleted_at.is_(None))
    )


def _sink(row: Any) -> Sink:
    return Sink(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        options=msgspec.json.decode(row["options"], type=Options),
        cursor=Cursor(row["record_id"], row["posting_id"], row["alert_id"]),
        failures=row["failures"],
        retry_ms=row["retry_ms"],
    )
