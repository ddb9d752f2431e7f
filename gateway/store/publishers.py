"""Publishers, their shares of models' sales, and what endpoints cost: dated rows in and out.

A change ends what was and begins anew, so that a late record is shared as on its day. Not here:
the split itself (``quotas.shares``), sums of costs (``quotas.costs``).
"""

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Column, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import endpoint_costs, publisher_shares
from quotas.costs import EndpointCost
from quotas.shares import Share

T = TypeVar("T")


class Dated(Generic[T]):
    """By id, values that hold from a moment to another; the last one has no end."""

    def __init__(self) -> None:
        self._spans: dict[int, list[tuple[int, int, T]]] = {}

    def add(self, row_id: int, from_ms: int, until_ms: int, value: T) -> None:
        self._spans.setdefault(row_id, []).append((from_ms, until_ms, value))

    def at(self, row_id: int, at_ms: int) -> list[T]:
        """What held then, in the order it was made."""
        spans = self._spans.get(row_id)
        if spans is None:
            return []
        return [
            value
            for from_ms, until_ms, value in spans
            if from_ms <= at_ms and (not until_ms or at_ms < until_ms)
        ]

    def __bool__(self) -> bool:
        return bool(self._spans)


async def read_shares(connection: AsyncConnection, model_ids: Collection[int]) -> Dated[Share]:
    found: Dated[Share] = Dated()
    query = select(publisher_shares).order_by(publisher_shares.c.id)
    rows = await connection.execute(query.where(publisher_shares.c.model_id.in_(sorted(model_ids))))
    for row in rows.mappings():
        share = Share(
            publisher_id=row["publisher_id"],
            basis_points=row["basis_points"],
            floor_nano_per_million=row["floor_nano_per_million"],
        )
        found.add(row["model_id"], row["from_ms"], row["until_ms"], share)
    return found


async def read_costs(
    connection: AsyncConnection, endpoint_ids: Collection[int]
) -> Dated[EndpointCost]:
    found: Dated[EndpointCost] = Dated()
    rows = await connection.execute(
        select(endpoint_costs)
        .where(endpoint_costs.c.endpoint_id.in_(sorted(endpoint_ids)))
        .order_by(endpoint_costs.c.id)
    )
    for row in rows.mappings():
        cost = EndpointCost(
            input_nano=row["input_nano"],
            output_nano=row["output_nano"],
            hour_nano=row["hour_nano"],
            currency=row["currency"],
        )
        found.add(row["endpoint_id"], row["from_ms"], row["until_ms"], cost)
    return found


async def set_shares(
    connection: AsyncConnection, model_id: int, wanted: Sequence[Share], now_ms: int
) -> bool:
    """From now on these; False when they are that already."""
    now = (await read_shares(connection, [model_id])).at(model_id, now_ms)
    if sorted(now, key=_publisher) == sorted(wanted, key=_publisher):
        return False
    table = publisher_shares
    await _end(connection, table.c.model_id == model_id, table.c.until_ms, now_ms)
    for share in wanted:
        await connection.execute(
            insert(table).values(
                model_id=model_id,
                publisher_id=share.publisher_id,
                basis_points=share.basis_points,
                floor_nano_per_million=share.floor_nano_per_million,
                from_ms=now_ms,
                until_ms=0,
            )
        )
    return True


async def set_cost(
    connection: AsyncConnection, endpoint_id: int, wanted: EndpointCost | None, now_ms: int
) -> bool:
    """From now on this, or nothing; False when it is that already."""
    now = (await read_costs(connection, [endpoint_id])).at(endpoint_id, now_ms)
    if now == ([] if wanted is None else [wanted]):
        return False
    table = endpoint_costs
    await _end(connection, table.c.endpoint_id == endpoint_id, table.c.until_ms, now_ms)
    if wanted is not None:
        await connection.execute(
            insert(table).values(
                endpoint_id=endpoint_id,
                input_nano=wanted.input_nano,
                output_nano=wanted.output_nano,
                hour_nano=wanted.hour_nano,
                currency=wanted.currency,
                from_ms=now_ms,
                until_ms=0,
            )
        )
    return True


async def _end(
    connection: AsyncConnection, where: object, until: "Column[int]", now_ms: int
) -> None:
    await connection.execute(
        update(until.table).where(where, until == 0).values(until_ms=now_ms)  # type: ignore[arg-type]
    )


def _publisher(share: Share) -> int:
    return share.publisher_id
