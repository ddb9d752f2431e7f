"""What scopes have spent since a moment, from the ledger: the truth that budgets are counted from.

Not here: which periods there are (``quotas.calendar``), where the sums go (the store of limits).
"""

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.schema import usage_records
from quotas.money import micro

_COLUMNS = {"t": "tenant_id", "p": "project_id", "k": "key_id"}


class Scope(msgspec.Struct, frozen=True):
    """``t3``, ``p4``, ``k5``, each perhaps with ``m6``: of one model alone."""

    column: str
    row_id: int
    model_id: int = 0


def parse_scope(text: str) -> Scope | None:
    """A limit's scope; None for an end user's, whom the ledger does not know.

    >>> parse_scope("k5m6")
    Scope(column='key_id', row_id=5, model_id=6)
    """
    column = _COLUMNS.get(text[:1])
    row_id, _, model_id = text[1:].partition("m")
    if column is None or not row_id.isdigit() or (model_id and not model_id.isdigit()):
        return None
    return Scope(column, int(row_id), int(model_id or 0))


async def spent_micro(
    connection: AsyncConnection, scope: Scope, currency: str, from_ms: int, to_ms: int
) -> int:
    """Micro-units billed for requests admitted in [from, to), rounded up; what reserved throughput
    covered was paid by the hour, and spends nothing.
    """
    query = select(func.coalesce(func.sum(usage_records.c.cost_nano), 0)).where(
        usage_records.c[scope.column] == scope.row_id,
        usage_records.c.currency == currency,
        usage_records.c.started_ms >= from_ms,
        usage_records.c.started_ms < to_ms,
        usage_records.c.covered_tokens == 0,
    )
    if scope.model_id:
        query = query.where(usage_records.c.model_id == scope.model_id)
    return micro(int(await connection.scalar(query) or 0))
