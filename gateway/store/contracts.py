"""Contracts and throughput terms: rows in and out. Versions are never overwritten.

Not here: what a contract makes of a charge (``quotas.contracts``), files (``gateway.declared``).
"""

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import RowMapping, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import Conflict, NotFound, insert_row
from gateway.store.schema import contracts, models, throughput_terms, throughput_use
from quotas.contracts import Contract, TermReport, ThroughputTerm, report

#: What makes two versions the same contract.
_CONTENT = ("kind", "currency", "credit_line_nano", "commitment_nano", "overage_ppm")


async def contracts_of(
    connection: AsyncConnection, tenant_ids: Collection[int]
) -> dict[int, list[Contract]]:
    """Tenant id -> its versions, newest first."""
    rows = await connection.execute(
        select(contracts)
        .where(contracts.c.tenant_id.in_(sorted(tenant_ids)))
        .order_by(contracts.c.version.desc())
    )
    found: dict[int, list[Contract]] = {}
    for row in rows.mappings():
        found.setdefault(row["tenant_id"], []).append(_contract(row))
    return found


async def contract_at(connection: AsyncConnection, tenant_id: int, at_ms: int) -> Contract | None:
    """The one in force at a moment."""
    return in_force((await contracts_of(connection, [tenant_id])).get(tenant_id), at_ms)


def in_force(versions: list[Contract] | None, at_ms: int) -> Contract | None:
    """The newest that had begun then."""
    return next((each for each in versions or () if each.from_ms <= at_ms), None)


async def set_contract(connection: AsyncConnection, wanted: Contract, now_ms: int) -> bool:
    """A new version when anything differs, from its ``from_ms`` on where that is still to come, else
    from now; False when it is that already. What was to begin at another moment is taken back.
    """
    from_ms = max(wanted.from_ms, now_ms)
    known = (await contracts_of(connection, [wanted.tenant_id])).get(wanted.tenant_id, [])
    planned = [each.id for each in known if each.from_ms > now_ms and each.from_ms != from_ms]
    if planned:  # it never was in force, so nothing was sold under it
        await connection.execute(contracts.delete().where(contracts.c.id.in_(planned)))
    kept = [each for each in known if each.id not in planned]
    now = in_force(kept, from_ms)
    if now and all(getattr(now, name) == getattr(wanted, name) for name in _CONTENT):
        return bool(planned)
    values = {name: getattr(wanted, name) for name in _CONTENT}
    version = known[0].version + 1 if known else 1
    await insert_row(
        connection,
        contracts,
        tenant_id=wanted.tenant_id,
        version=version,
        from_ms=from_ms,
        **values,
    )
    return True


async def terms_of(
    connection: AsyncConnection, tenant_ids: Collection[int]
) -> dict[int, list[ThroughputTerm]]:
    """Tenant id -> its terms, oldest first, those only asked for among them."""
    rows = await connection.execute(
        select(throughput_terms)
        .where(throughput_terms.c.tenant_id.in_(sorted(tenant_ids)))
        .order_by(throughput_terms.c.id)
    )
    found: dict[int, list[ThroughputTerm]] = {}
    for row in rows.mappings():
        found.setdefault(row["tenant_id"], []).append(_term(row))
    return found


async def ask_for_term(connection: AsyncConnection, term: ThroughputTerm, now_ms: int) -> int:
    """A term that somebody wants; its id. Nothing is sold until it is accepted."""
    values = msgspec.structs.asdict(term)
    del values["id"]
    return await insert_row(
        connection, throughput_terms, **(values | {"accepted_ms": 0, "asked_ms": now_ms})
    )


async def accept_term(connection: AsyncConnection, term_id: int, now_ms: int) -> ThroughputTerm:
    """Sold from now on, and billed from now on. Raises ``NotFound``, ``Conflict``."""
    term = await _one_term(connection, term_id)
    if term.accepted_ms:
        raise Conflict(f"the term {term_id} is accepted already")
    if term.until_ms <= now_ms:
        raise Conflict(f"the term {term_id} has ended already; ask for another")
    others = (await terms_of(connection, [term.tenant_id]))[term.tenant_id]
    if any(each.model_id == term.model_id and each.holds(now_ms) for each in others):
        raise Conflict("the tenant has a term for that model; end it first")
    await connection.execute(
        update(throughput_terms).where(throughput_terms.c.id == term_id).values(accepted_ms=now_ms)
    )
    return msgspec.structs.replace(term, accepted_ms=now_ms)


async def end_term(connection: AsyncConnection, term_id: int, now_ms: int) -> ThroughputTerm:
    """It ends now; hours up to now stay billed."""
    term = await _one_term(connection, term_id)
    if term.until_ms <= now_ms:
        raise Conflict(f"the term {term_id} has ended already")
    await connection.execute(
        update(throughput_terms).where(throughput_terms.c.id == term_id).values(until_ms=now_ms)
    )
    return msgspec.structs.replace(term, until_ms=now_ms)


async def term_report(connection: AsyncConnection, term: ThroughputTerm, month: int) -> TermReport:
    """What a term sold in a month, how much of it was used, and what it costs."""
    used = await connection.scalar(
        select(func.sum(throughput_use.c.tokens)).where(
            throughput_use.c.term_id == term.id, throughput_use.c.month == month
        )
    )
    return report(term, month, int(used or 0))


async def model_name(connection: AsyncConnection, model_id: int) -> str:
    return str(await connection.scalar(select(models.c.name).where(models.c.id == model_id)) or "")


async def _one_term(connection: AsyncConnection, term_id: int) -> ThroughputTerm:
    query = select(throughput_terms).where(throughput_terms.c.id == term_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no throughput term {term_id}")
    return _term(row)


def _contract(row: RowMapping) -> Contract:
    return msgspec.convert(_plain(row), Contract)


def _term(row: RowMapping) -> ThroughputTerm:
    return msgspec.convert(_plain(row), ThroughputTerm)


def _plain(row: RowMapping) -> dict[str, Any]:
    """Column names are a kind of str that msgspec does not take for one."""
    return {str(name): value for name, value in row.items()}
