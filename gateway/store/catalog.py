"""Models and the price book: rows in and out. Prices are versions, never overwritten.

Not here: what routing knows of a pool (``routing.topology``), files (``gateway.declared``).
"""

from collections.abc import Mapping

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import insert_row
from gateway.store.schema import price_versions, prices
from quotas.pricing import Price

UNIT = "million_tokens"


async def price_in_force(connection: AsyncConnection, model_id: int) -> Price | None:
    """The newest version of a model's price."""
    row = (
        (
            await connection.execute(
                select(price_versions)
                .where(price_versions.c.model_id == model_id)
                .order_by(price_versions.c.version.desc())
                .limit(1)
            )
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    lines = await connection.execute(
        select(prices.c.meter, prices.c.nano).where(prices.c.price_version_id == row["id"])
    )
    return Price(
        id=row["id"],
        version=row["version"],
        currency=row["currency"],
        nano={str(meter): int(nano) for meter, nano in lines},
    )


async def set_price(
    connection: AsyncConnection, model_id: int, currency: str, nano: Mapping[str, int], now_ms: int
) -> bool:
    """A new version when anything differs; False when the price is that already."""
    known = await price_in_force(connection, model_id)
    if known is not None and (known.currency, known.nano) == (currency, dict(nano)):
        return False
    version_id = await insert_row(
        connection,
        price_versions,
        model_id=model_id,
        version=1 if known is None else known.version + 1,
        currency=currency,
        effective_from_ms=now_ms,
    )
    await connection.execute(
        insert(prices),
        [
            {"price_version_id": version_id, "meter": meter, "unit": UNIT, "nano": amount}
            for meter, amount in nano.items()
        ],
    )
    return True
