"""Hours of GPUs as postings: what each endpoint costs by the hour is booked when the hour is over.

Of all tenants together and of no model: who kept the GPUs busy is the margin's question
(``gateway.store.margins``). Booked through a whole hour that is kept in ``meta``, under the books'
lock, so that hosts take turns and no hour is booked twice. Not here: sums of one stretch
(``quotas.costs``).
"""

from collections.abc import Iterator

from sqlalchemy import RowMapping, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.entries import Journal, lock_books, read_closed
from gateway.store.schema import endpoint_costs, meta
from quotas.contracts import HOUR_MS
from quotas.costs import hours_between
from quotas.entries import Entry, move
from quotas.months import bounds_ms, period_of

BOOKED = "hours_booked_ms"


async def book_hours(connection: AsyncConnection, now_ms: int) -> int:
    """Book every hour that is over and was not booked; how many entries were posted."""
    await lock_books(connection)
    until_ms = now_ms - now_ms % HOUR_MS
    from_ms = await _booked(connection)
    if from_ms is None or from_ms >= until_ms:
        return 0
    table = endpoint_costs
    rows = await connection.execute(
        select(table).where(
            table.c.hour_nano > 0,
            table.c.from_ms < until_ms,
            (table.c.until_ms == 0) | (table.c.until_ms > from_ms),
        )
    )
    journal = Journal(await read_closed(connection), now_ms)
    entries = [each for row in rows.mappings() for each in _entries(row, from_ms, until_ms)]
    for entry in entries:
        journal.add(entry)
    await journal.write(connection)
    await connection.execute(update(meta).where(meta.c.name == BOOKED).values(value=str(until_ms)))
    return len(entries)


def _entries(row: RowMapping, from_ms: int, until_ms: int) -> Iterator[Entry]:
    """What one endpoint's GPUs cost in a stretch, an entry a month."""
    for start_ms, end_ms in _by_month(from_ms, min(until_ms, row["until_ms"] or until_ms)):
        nano = hours_between(row["hour_nano"], row["from_ms"], start_ms, end_ms)
        if nano:
            yield move(
                f"hours:{row['id']}:{end_ms}",
                "cost",
                0,
                row["currency"],
                end_ms - 1,
                "operator_cost",
                "cost_accrued",
                nano,
            )


async def _booked(connection: AsyncConnection) -> int | None:
    """Booked through this moment; at first, from when on anything costs by the hour, else None."""
    found = await connection.scalar(select(meta.c.value).where(meta.c.name == BOOKED))
    if found is not None:
        return int(found)
    first = await connection.scalar(
        select(func.min(endpoint_costs.c.from_ms)).where(endpoint_costs.c.hour_nano > 0)
    )
    if first is None:
        return None
    await connection.execute(insert(meta).values(name=BOOKED, value=str(first)))
    return int(first)


def _by_month(from_ms: int, until_ms: int) -> Iterator[tuple[int, int]]:
    """The stretch, cut where months begin: after an outage it may be long."""
    while from_ms < until_ms:
        end_ms = min(until_ms, bounds_ms(period_of(from_ms))[1])
        yield from_ms, end_ms
        from_ms = end_ms
