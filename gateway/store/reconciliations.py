"""What reconciliation keeps in SQL: where the next one begins, what probes cost, what was found.

Points and reports are JSON of ``gateway.metering.reconcile``'s values, kept and given back as they
are. Not here: their arithmetic, and when it is done (``gateway.control.reconciler``).
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from sqlalchemy import delete, insert, or_, select, update

from gateway.store.database import Database
from gateway.store.schema import engine_points, engine_probes, reconciliations, usage_records

#: The longest that a request may last (``timeouts.stream_s`` is a day at most).
LONGEST_MS = 86_400_000
PAGE = 1_000


class Kept(msgspec.Struct, frozen=True):
    """A reconciliation as kept: its two points and its report, JSON."""

    id: int
    first: str
    last: str
    report: str


class Probe(msgspec.Struct, frozen=True):
    """A question that cost tokens. ``ended_ms`` None: its asker died. Counts None: nobody said."""

    endpoint: str
    started_ms: int
    ended_ms: int | None
    prompt_tokens: int | None
    completion_tokens: int | None


async def read_point(db: Database, endpoint: str) -> str | None:
    """Where an endpoint's next reconciliation begins."""
    async with db.read() as connection:
        found = await connection.scalar(
            select(engine_points.c.point).where(engine_points.c.endpoint == endpoint)
        )
    return None if found is None else str(found)


async def begin(db: Database, endpoint: str, at_ms: int, point: str) -> bool:
    """The first point of an endpoint; False when it has one already."""
    async with db.begin() as connection:
        known = await connection.scalar(
            select(engine_points.c.at_ms).where(engine_points.c.endpoint == endpoint)
        )
        if known is None:
            row = {"endpoint": endpoint, "at_ms": at_ms, "point": point}
            await connection.execute(insert(engine_points).values(**row))
    return known is None


async def save(
    db: Database,
    *,
    endpoint: str,
    since_ms: int,
    at_ms: int,
    point: str,
    found: list[dict[str, Any]],
) -> bool:
    """Move an endpoint's point on from ``since_ms``, and keep what was found up to there.

    False, and nothing is kept, when another control process was first. ``found``: columns of
    ``reconciliations``.
    """
    async with db.begin() as connection:
        moved = await connection.execute(
            update(engine_points)
            .where(engine_points.c.endpoint == endpoint, engine_points.c.at_ms == since_ms)
            .values(at_ms=at_ms, point=point)
        )
        if moved.rowcount != 1:
            return False
        if found:
            await connection.execute(insert(reconciliations), found)
    return True


async def unexplained(db: Database, since_ms: int) -> list[Kept]:
    """Reconciliations that end after a moment and left a difference: late records may close it."""
    query = (
        select(reconciliations)
        .where(reconciliations.c.difference_tokens > 0, reconciliations.c.to_ms > since_ms)
        .order_by(reconciliations.c.id)
    )
    async with db.read() as connection:
        rows = (await connection.execute(query)).mappings().all()
    return [Kept(row["id"], row["first_point"], row["last_point"], row["report"]) for row in rows]


async def judge_again(db: Database, found_id: int, report: str, difference_tokens: int) -> None:
    """Replace what was found between the same two points."""
    async with db.begin() as connection:
        await connection.execute(
            update(reconciliations)
            .where(reconciliations.c.id == found_id)
            .values(report=report, difference_tokens=difference_tokens)
        )


async def read_reports(db: Database, *, endpoint: str | None = None, limit: int = 100) -> list[str]:
    """The newest reports first."""
    query = select(reconciliations.c.report).order_by(reconciliations.c.id.desc()).limit(limit)
    if endpoint is not None:
        query = query.where(reconciliations.c.endpoint == endpoint)
    async with db.read() as connection:
        return [str(report) for report in (await connection.scalars(query)).all()]


async def prune(db: Database, before_ms: int) -> int:
    """Drop reports that end, and probes that began, before a moment; how many rows."""
    async with db.begin() as connection:
        gone = [
            await connection.execute(
                delete(reconciliations).where(reconciliations.c.to_ms < before_ms)
            ),
            await connection.execute(
                delete(engine_probes).where(engine_probes.c.started_ms < before_ms)
            ),
        ]
    return sum(each.rowcount for each in gone)


async def open_probe(db: Database, endpoint: str, started_ms: int) -> int:
    """A question is about to be asked; its row's id. What it costs is not known yet."""
    async with db.begin() as connection:
        made = await connection.execute(
            insert(engine_probes).values(endpoint=endpoint, started_ms=started_ms)
        )
        key = made.inserted_primary_key
        assert key is not None
        return int(key[0])


async def close_probe(
    db: Database, probe_id: int, ended_ms: int, counted: tuple[int, int] | None
) -> None:
    prompt, completion = counted or (None, None)
    async with db.begin() as connection:
        await connection.execute(
            update(engine_probes)
            .where(engine_probes.c.id == probe_id)
            .values(ended_ms=ended_ms, prompt_tokens=prompt, completion_tokens=completion)
        )


async def probes_between(db: Database, from_ms: int, to_ms: int) -> list[Probe]:
    """Those that may have cost something in between."""
    query = select(engine_probes).where(
        engine_probes.c.started_ms <= to_ms,
        or_(engine_probes.c.ended_ms.is_(None), engine_probes.c.ended_ms >= from_ms),
        engine_probes.c.started_ms >= from_ms - LONGEST_MS,
    )
    async with db.read() as connection:
        rows = (await connection.execute(query)).mappings().all()
    return [Probe(**{name: row[name] for name in Probe.__struct_fields__}) for row in rows]


async def payloads_between(db: Database, from_ms: int, to_ms: int) -> AsyncIterator[list[bytes]]:
    """Records of requests that were open at any time in between, a page at a time.

    A crash's end was seen by nobody: it may have lasted longer than its record says.
    """
    after = 0
    while True:
        query = (
            select(usage_records.c.id, usage_records.c.payload)
            .where(
                usage_records.c.id > after,
                usage_records.c.started_ms <= to_ms,
                usage_records.c.started_ms >= from_ms - LONGEST_MS,
                or_(
                    usage_records.c.started_ms + usage_records.c.total_ms >= from_ms,
                    usage_records.c.outcome == "gateway_crash",
                ),
            )
            .order_by(usage_records.c.id)
            .limit(PAGE)
        )
        async with db.read() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return
        yield [bytes(payload) for _, payload in rows]
        after = rows[-1][0]
