"""Models and the price book: rows in and out. Prices are versions, never overwritten.

Not here: what routing knows of a pool (``routing.topology``), files (``gateway.declared``).
"""

from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import ColumnElement, RowMapping, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import insert_row
from gateway.store.schema import price_versions, prices
from quotas.meters import PER
from quotas.pricing import DEFAULT_TIER, Price, Rate

UNITS = {1: "one"}
MILLION_TOKENS = "million_tokens"
#: What makes two versions of one price the same price.
_CONTENT = ("currency", "nano", "conditional", "multiplier_ppm", "time_zone")


async def price_in_force(connection: AsyncConnection, model_id: int, at_ms: int) -> Price | None:
    """What a model costs everybody at a moment (Unix ms)."""
    found = await prices_in_force(connection, model_id, at_ms)
    return found.get((0, DEFAULT_TIER))


async def prices_in_force(
    connection: AsyncConnection, model_id: int, at_ms: int
) -> dict[tuple[int, str], Price]:
    """(tenant id, tier) -> the newest version that has begun by then and not ended. Tenant 0 is
    everybody.
    """
    rows = await connection.execute(
        select(price_versions)
        .where(price_versions.c.model_id == model_id, _in_force(at_ms))
        .order_by(price_versions.c.version)
    )
    newest = {(row["tenant_id"], row["tier"]): row["id"] for row in rows.mappings()}
    found = await prices_of(connection, newest.values())
    return {where: found[price_id] for where, price_id in newest.items()}


async def prices_of_tenants(
    connection: AsyncConnection, tenant_ids: Collection[int], at_ms: int
) -> dict[int, dict[tuple[int, str], Price]]:
    """Tenant id -> (model id, tier) -> what that tenant pays in place of everybody's price."""
    table = price_versions
    rows = await connection.execute(
        select(table.c.id, table.c.tenant_id, table.c.model_id, table.c.tier)
        .where(table.c.tenant_id.in_(tenant_ids), _in_force(at_ms))
        .order_by(table.c.version)
    )
    newest = {(row.tenant_id, row.model_id, row.tier): row.id for row in rows}
    found = await prices_of(connection, newest.values())
    prices: dict[int, dict[tuple[int, str], Price]] = {}
    for (tenant_id, model_id, tier), price_id in newest.items():
        prices.setdefault(tenant_id, {})[model_id, tier] = found[price_id]
    return prices


async def prices_of(connection: AsyncConnection, price_ids: Iterable[int]) -> dict[int, Price]:
    """Price versions by id; an unknown id is missing."""
    wanted = sorted(set(price_ids) - {0})
    if not wanted:
        return {}
    nano: dict[int, dict[str, int]] = {}
    lines = await connection.execute(
        select(prices.c.price_version_id, prices.c.meter, prices.c.nano)
        .where(prices.c.price_version_id.in_(wanted))
        .order_by(prices.c.meter)
    )
    for price_id, meter, amount in lines:
        nano.setdefault(price_id, {})[str(meter)] = int(amount)
    rows = await connection.execute(select(price_versions).where(price_versions.c.id.in_(wanted)))
    return {row["id"]: _price(row, nano.get(row["id"], {})) for row in rows.mappings()}


async def set_price(
    connection: AsyncConnection,
    model_id: int,
    wanted: Price,
    from_ms: int,
) -> bool:
    """A new version from a moment on when anything differs; False when the price is that by then.

    ``wanted`` says everything but id, version and times.
    """
    where = (wanted.tenant_id, wanted.tier)
    known = (await prices_in_force(connection, model_id, from_ms)).get(where)
    if known is not None and all(getattr(known, n) == getattr(wanted, n) for n in _CONTENT):
        return False
    newest = await connection.scalar(
        select(price_versions.c.version)
        .where(price_versions.c.model_id == model_id)
        .order_by(price_versions.c.version.desc())
        .limit(1)
    )
    version_id = await insert_row(
        connection,
        price_versions,
        model_id=model_id,
        version=(newest or 0) + 1,
        currency=wanted.currency,
        effective_from_ms=from_ms,
        until_ms=0,
        tenant_id=wanted.tenant_id,
        tier=wanted.tier,
        multiplier_ppm=wanted.multiplier_ppm,
        time_zone=wanted.time_zone,
        conditional=msgspec.json.encode(wanted.conditional).decode(),
    )
    if wanted.nano:
        await connection.execute(
            insert(prices), [_line(version_id, meter, nano) for meter, nano in wanted.nano.items()]
        )
    return True


async def end_prices(
    connection: AsyncConnection, model_id: int, kept: Collection[tuple[int, str]], at_ms: int
) -> bool:
    """End what a model costs where ``kept`` has no (tenant id, tier); whether there was any."""
    ended = False
    for (tenant_id, tier), price in (await prices_in_force(connection, model_id, at_ms)).items():
        if (tenant_id, tier) not in kept:
            ended = True
            await connection.execute(
                update(price_versions)
                .where(
                    price_versions.c.model_id == model_id,
                    price_versions.c.tenant_id == tenant_id,
                    price_versions.c.tier == tier,
                    price_versions.c.version <= price.version,
                    _in_force(at_ms),
                )
                .values(until_ms=at_ms)
            )
    return ended


async def unplan_prices(
    connection: AsyncConnection, model_id: int, tenant_id: int, now_ms: int, but_ms: int
) -> bool:
    """Take back what was to begin or end later, unless all of it is at ``but_ms``; whether anything
    was. A version that never came into force stays, and ends when it would have begun.
    """
    table = price_versions
    begins = (table.c.effective_from_ms > now_ms) & (
        (table.c.until_ms == 0) | (table.c.until_ms > table.c.effective_from_ms)
    )
    ends = (table.c.effective_from_ms <= now_ms) & (table.c.until_ms > now_ms)
    mine = (table.c.model_id == model_id) & (table.c.tenant_id == tenant_id)
    rows = await connection.execute(select(table).where(mine, begins | ends))
    moments = {
        row["effective_from_ms"] if row["effective_from_ms"] > now_ms else row["until_ms"]
        for row in rows.mappings()
    }
    if moments <= {but_ms}:
        return False
    await connection.execute(
        update(table).where(mine, begins).values(until_ms=table.c.effective_from_ms)
    )
    await connection.execute(update(table).where(mine, ends).values(until_ms=0))
    return True


def _in_force(at_ms: int) -> ColumnElement[bool]:
    table = price_versions
    ended = (table.c.until_ms > 0) & (table.c.until_ms <= at_ms)
    return (table.c.effective_from_ms <= at_ms) & ~ended


def _line(version_id: int, meter: str, nano: int) -> dict[str, object]:
    unit = UNITS.get(PER[meter], MILLION_TOKENS)
    return {"price_version_id": version_id, "meter": meter, "unit": unit, "nano": nano}


def _price(row: RowMapping, nano: dict[str, int]) -> Price:
    return Price(
        id=row["id"],
        version=row["version"],
        currency=row["currency"],
        nano=nano,
        conditional=msgspec.json.decode(row["conditional"], type=tuple[Rate, ...]),
        tier=row["tier"],
        multiplier_ppm=row["multiplier_ppm"],
        time_zone=row["time_zone"],
        tenant_id=row["tenant_id"],
        from_ms=row["effective_from_ms"],
        until_ms=row["until_ms"],
    )
