"""What begins or ends by itself: prices and contracts whose moment was said in advance.

Not here: who looks, and tells data processes (``gateway.control.almanac``).
"""

from sqlalchemy import Column, ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import contracts, price_versions


async def due(connection: AsyncConnection, after_ms: int, until_ms: int) -> list[tuple[str, int]]:
    """Rows (kind, id) whose documents are others after ``until_ms`` than after ``after_ms``."""

    def within(column: "Column[int]") -> ColumnElement[bool]:
        return (column > after_ms) & (column <= until_ms)

    found: set[tuple[str, int]] = set()
    table = price_versions
    for model_id, tenant_id in await connection.execute(
        select(table.c.model_id, table.c.tenant_id).where(
            within(table.c.effective_from_ms) | within(table.c.until_ms)
        )
    ):
        found.add(("tenant", tenant_id) if tenant_id else ("model", model_id))
    for (tenant_id,) in await connection.execute(
        select(contracts.c.tenant_id).where(within(contracts.c.from_ms))
    ):
        found.add(("tenant", tenant_id))
    return sorted(found)
