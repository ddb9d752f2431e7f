"""What is left: sales, publishers' parts and engines' costs of a month, by model.

Costs by tokens are each record's own; hours of GPUs are the whole endpoint's and spread over the
models that kept it busy, in proportion to the time of their attempts; hours in which nobody came are
idle. Read only. Not here: sums of one attempt (``quotas.costs``).
"""

import json
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import endpoint_costs, models, postings, usage_records
from quotas.costs import hours_between, margin_ppm, spread
from quotas.money import format_amount
from quotas.months import bounds_ms

_SALES = ("revenue", "publisher_payable", "platform_fee", "promotional")
IDLE = "(idle)"


async def by_model(connection: AsyncConnection, month: int, now_ms: int) -> list[dict[str, Any]]:
    """One row a model and currency; ``net`` is what is the operator's of the sales."""
    sums: dict[tuple[str, str], dict[str, int]] = {}

    def row(model: str, currency: str) -> dict[str, int]:
        empty = dict.fromkeys(("sold", "promotional", "publishers", "token_cost", "hour_cost"), 0)
        return sums.setdefault((model, currency), empty)

    for model, currency, account, nano in await connection.execute(
        select(models.c.name, postings.c.currency, postings.c.account, func.sum(postings.c.nano))
        .outerjoin(models, postings.c.model_id == models.c.id)
        .where(postings.c.month == month, postings.c.account.in_(_SALES))
        .where(postings.c.kind != "payout")
        .group_by(models.c.name, postings.c.currency, postings.c.account)
    ):
        found = row(model or "", currency)
        if account == "promotional":
            found["promotional"] += int(nano)
        else:
            found["sold"] -= int(nano)
            if account == "publisher_payable":
                found["publishers"] -= int(nano)
    for model, currency, nano in await connection.execute(
        select(
            models.c.name, usage_records.c.currency, func.sum(usage_records.c.operator_cost_nano)
        )
        .outerjoin(models, usage_records.c.model_id == models.c.id)
        .where(usage_records.c.month == month)
        .group_by(models.c.name, usage_records.c.currency)
    ):
        if nano:
            row(model or "", currency)["token_cost"] += int(nano)
    for (model, currency), nano in (await _hours(connection, month, now_ms)).items():
        row(model, currency)["hour_cost"] += nano
    return [_shown(model, currency, found) for (model, currency), found in sorted(sums.items())]


async def _hours(
    connection: AsyncConnection, month: int, now_ms: int
) -> dict[tuple[str, str], int]:
    """(model, currency) -> nano of GPU hours in the month so far."""
    start_ms, end_ms = bounds_ms(month)
    rows = list(
        (
            await connection.execute(select(endpoint_costs).where(endpoint_costs.c.hour_nano > 0))
        ).mappings()
    )
    if not rows:
        return {}
    busy = await _busy(connection, start_ms, end_ms)
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        until_ms = min(row["until_ms"] or end_ms, end_ms, now_ms)
        cost = hours_between(row["hour_nano"], row["from_ms"], start_ms, max(start_ms, until_ms))
        for model, nano in spread(cost, busy.get(row["endpoint_id"], {})).items():
            where = (model or IDLE, row["currency"])
            found[where] = found.get(where, 0) + nano
    return found


async def _busy(
    connection: AsyncConnection, start_ms: int, end_ms: int
) -> dict[int, dict[str, int]]:
    """Endpoint id -> model -> milliseconds of attempts, failed ones too."""
    found: dict[int, dict[str, int]] = {}
    rows = await connection.stream(
        select(usage_records.c.attempt_log, models.c.name)
        .outerjoin(models, usage_records.c.model_id == models.c.id)
        .where(usage_records.c.started_ms >= start_ms, usage_records.c.started_ms < end_ms)
    )
    async for log, model in rows:
        for attempt in json.loads(log):
            of = found.setdefault(attempt["endpoint_id"], {})
            spent_ms = max(0, attempt["ended_ms"] - attempt["started_ms"])
            of[model or ""] = of.get(model or "", 0) + spent_ms
    return found


def _shown(model: str, currency: str, found: dict[str, int]) -> dict[str, Any]:
    net = found["sold"] - found["promotional"] - found["publishers"]
    cost = found["token_cost"] + found["hour_cost"]
    ppm = margin_ppm(net, cost)
    return {
        "model": model,
        "currency": currency,
        "sold": format_amount(found["sold"]),
        "promotional": format_amount(found["promotional"]),
        "publishers": format_amount(found["publishers"]),
        "net": format_amount(net),
        "token_cost": format_amount(found["token_cost"]),
        "hour_cost": format_amount(found["hour_cost"]),
        "margin": format_amount(net - cost),
        "margin_percent": None if net <= 0 else format_amount(ppm * 100_000),
    }
