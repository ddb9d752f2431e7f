"""Statements in SQL: a month of a party is closed once, in order, numbered, signed, and kept.

Closing books what a month owes by itself (true-ups, reserved hours), adds up, checks the sum three
ways (lines, postings, records) and only then closes; what does not add up stays open and says so.
What comes later is booked in the next month. Not here: what a statement is (``quotas.statement``).
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import case, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import Conflict, NotFound
from gateway.store.books import Books, open_books
from gateway.store.contracts import contracts_of, in_force, term_report, terms_of
from gateway.store.entries import lock_books
from gateway.store.publishers import read_shares
from gateway.store.schema import (
    account_sums,
    closings,
    models,
    postings,
    price_versions,
    publishers,
    statements,
    tenants,
    usage_lines,
    usage_records,
)
from quotas.charging import charge_hours
from quotas.contracts import shortfall
from quotas.entries import CHARGES, TENANT_ACCOUNTS, move
from quotas.months import bounds_ms, format_period, next_period, period_of
from quotas.statement import (
    Kind,
    Statement,
    StatementLine,
    StatementWrong,
    canonical,
    checked,
    sorted_lines,
)

#: Bytes in, (signature, public key) out.
Sign = Callable[[bytes], tuple[bytes, bytes]]
PAGE = 1_000
SHORTFALL = "commitment_shortfall"
THROUGHPUT = "throughput"
_TABLES = {"tenant": tenants, "publisher": publishers}


async def find_party(connection: AsyncConnection, kind: Kind, name: str) -> int:
    """The newest row of that name, living or not: what is owed outlives who owes it."""
    table = _TABLES[kind]
    query = select(table.c.id).where(table.c.name == name).order_by(table.c.id.desc()).limit(1)
    found = await connection.scalar(query)
    if found is None:
        raise NotFound(f"no {kind} {name}")
    return int(found)


async def close(
    connection: AsyncConnection, kind: Kind, name: str, month: int, now_ms: int, sign: Sign
) -> list[Statement]:
    """Close a month of a party: its statements, one a currency. Raises ``Conflict`` for a month that
    is closed, not over, or not the next; ``StatementWrong`` when it does not add up.
    """
    await lock_books(connection)
    party_id = await find_party(connection, kind, name)
    await _check_turn(connection, kind, party_id, month, now_ms)
    if kind == "tenant":
        await _book_what_is_due(connection, party_id, month, now_ms)
    number = int(await connection.scalar(select(func.max(statements.c.number))) or 0)
    made = []
    for currency in await _currencies(connection, kind, party_id, month):
        number += 1
        draft = await _draft(connection, kind, name, party_id, month, currency, number, now_ms)
        document = canonical(draft)
        signature, public_key = sign(document)
        await connection.execute(
            insert(statements).values(
                number=number,
                kind=kind,
                party_id=party_id,
                month=month,
                currency=currency,
                document=document,
                signature=signature,
                public_key=public_key,
                closed_ms=now_ms,
            )
        )
        made.append(draft)
    await connection.execute(
        closings.delete().where(closings.c.kind == kind, closings.c.party_id == party_id)
    )
    await connection.execute(insert(closings).values(kind=kind, party_id=party_id, month=month))
    return made


async def preview(
    connection: AsyncConnection, kind: Kind, name: str, month: int, now_ms: int
) -> list[Statement]:
    """What closing now would say, less what it would book itself. Number 0."""
    party_id = await find_party(connection, kind, name)
    return [
        await _draft(connection, kind, name, party_id, month, currency, 0, now_ms)
        for currency in await _currencies(connection, kind, party_id, month)
    ]


async def recompute(connection: AsyncConnection, number: int) -> bytes:
    """The document of a closed statement, made again from the ledger: the same bytes."""
    row = await one(connection, number)
    table = _TABLES[row["kind"]]
    name = await connection.scalar(select(table.c.name).where(table.c.id == row["party_id"]))
    draft = await _draft(
        connection,
        row["kind"],
        str(name),
        row["party_id"],
        row["month"],
        row["currency"],
        number,
        row["closed_ms"],
    )
    return canonical(draft)


async def one(connection: AsyncConnection, number: int) -> dict[str, Any]:
    query = select(statements).where(statements.c.number == number)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no statement {number}")
    return dict(row)


async def listed(
    connection: AsyncConnection, *, after: int = 0, limit: int = PAGE
) -> list[dict[str, Any]]:
    """Statements without their documents, by number, with today's names of whose they are."""
    names = ("number", "kind", "party_id", "month", "currency", "closed_ms")
    of_tenant = statements.c.kind == "tenant"
    party = case((of_tenant, tenants.c.name), else_=publishers.c.name)
    rows = await connection.execute(
        select(*(statements.c[name] for name in names), party.label("party"))
        .outerjoin(tenants, statements.c.party_id == tenants.c.id)
        .outerjoin(publishers, statements.c.party_id == publishers.c.id)
        .where(statements.c.number > after)
        .order_by(statements.c.number)
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


# -- what closing books ----------------------------------------------------------------------


async def _check_turn(
    connection: AsyncConnection, kind: Kind, party_id: int, month: int, now_ms: int
) -> None:
    if bounds_ms(month)[1] > now_ms:
        raise Conflict(f"{format_period(month)} is not over; close it when it is")
    closed = await connection.scalar(
        select(closings.c.month).where(closings.c.kind == kind, closings.c.party_id == party_id)
    )
    if closed is not None and month <= closed:
        raise Conflict(f"{format_period(month)} is closed; corrections go to the next month")
    first = await _first_open(connection, kind, party_id, closed or 0)
    if first is not None and first < month:
        raise Conflict(f"months close in order: {format_period(first)} is still open")


async def _first_open(
    connection: AsyncConnection, kind: Kind, party_id: int, closed: int
) -> int | None:
    """The first month after ``closed`` in which something is booked, or will be when it closes."""
    booked = select(func.min(account_sums.c.month)).where(
        account_sums.c[f"{kind}_id"] == party_id, account_sums.c.month > closed
    )
    months = [await connection.scalar(booked)]
    if kind == "tenant":
        listed_too = select(func.min(usage_lines.c.month)).where(
            usage_lines.c.tenant_id == party_id, usage_lines.c.month > closed
        )
        months.append(await connection.scalar(listed_too))
        after = next_period(closed) if closed else 0
        for term in (await terms_of(connection, [party_id])).get(party_id, []):
            start = max(after, period_of(term.accepted_ms))
            if term.accepted_ms and bounds_ms(start)[0] < term.until_ms:
                months.append(start)
        contracts = (await contracts_of(connection, [party_id])).get(party_id, [])
        months += [
            max(after, period_of(each.from_ms))
            for each in contracts[:1]
            if each.kind == "commitment"
        ]
    return min((month for month in months if month), default=None)


async def _book_what_is_due(
    connection: AsyncConnection, tenant_id: int, month: int, now_ms: int
) -> None:
    """Reserved hours and the commitment's shortfall, at the month's last moment."""
    books = await open_books(connection, [], now_ms)
    end_ms = bounds_ms(month)[1] - 1
    books.contracts = await contracts_of(connection, [tenant_id])
    await books.read_grants(connection, [tenant_id])
    await books.read_used(connection, [])
    await _book_hours(connection, books, tenant_id, month, end_ms)
    contract = in_force(books.contracts.get(tenant_id), end_ms)
    if contract is not None and contract.kind == "commitment":
        account = books.account(tenant_id, contract.currency)
        lacks = shortfall(contract.commitment_nano, account.committed.get(month, 0))
        if lacks:
            books.journal.add(
                move(
                    f"shortfall:{tenant_id}:{month}",
                    "shortfall",
                    tenant_id,
                    contract.currency,
                    end_ms,
                    "receivable",
                    "commitment_shortfall",
                    lacks,
                )
            )
            books.add_line(tenant_id, month, contract.currency, 0, SHORTFALL, 1, lacks)
    await books.write(connection)


async def _book_hours(
    connection: AsyncConnection, books: Books, tenant_id: int, month: int, end_ms: int
) -> None:
    for term in (await terms_of(connection, [tenant_id])).get(tenant_id, []):
        found = await term_report(connection, term, month)
        if not found.charge_nano:
            continue
        shares = (await read_shares(connection, [term.model_id])).at(term.model_id, end_ms)
        account = books.account(tenant_id, term.currency)
        key = f"throughput:{term.id}:{month}"
        entry, _ = charge_hours(
            term, found.charge_nano, found.used_tokens, account, shares, key, end_ms
        )
        books.journal.add(entry)
        hours = (tenant_id, month, term.currency, term.model_id)
        books.add_line(*hours, THROUGHPUT, found.used_tokens, found.charge_nano)


# -- adding up -------------------------------------------------------------------------------


async def _currencies(
    connection: AsyncConnection, kind: Kind, party_id: int, month: int
) -> list[str]:
    """Every currency in which the party has an account by then, or a line; none is no statement."""
    party = account_sums.c[f"{kind}_id"]
    found = set(
        await connection.scalars(
            select(account_sums.c.currency)
            .where(party == party_id, account_sums.c.month <= month)
            .distinct()
        )
    )
    if kind == "tenant":
        found |= set(
            await connection.scalars(
                select(usage_lines.c.currency)
                .where(usage_lines.c.tenant_id == party_id, usage_lines.c.month == month)
                .distinct()
            )
        )
    return sorted(found)


async def _draft(
    connection: AsyncConnection,
    kind: Kind,
    name: str,
    party_id: int,
    month: int,
    currency: str,
    number: int,
    closed_ms: int,
) -> Statement:
    """The statement as the ledger has it; raises ``StatementWrong``."""
    opening, movements = await _accounts(connection, kind, party_id, month, currency)
    closing = {
        account: opening.get(account, 0) + movements.get(account, 0)
        for account in opening.keys() | movements.keys()
    }
    if kind == "tenant":
        records, lines = await _tenant_lines(connection, party_id, month, currency)
        owed = await _charged_by_postings(connection, party_id, month, currency)
        await _check_records(connection, party_id, month, currency)
    else:
        records, lines = await _publisher_lines(connection, party_id, month, currency)
        owed = sum(line.amount_nano for line in lines)
    return checked(
        Statement(
            number=number,
            kind=kind,
            party=name,
            party_id=party_id,
            period=format_period(month),
            currency=currency,
            records=records,
            lines=lines,
            charged_nano=sum(line.amount_nano for line in lines),
            opening={key: nano for key, nano in opening.items() if nano},
            movements={key: nano for key, nano in movements.items() if nano},
            closing={key: nano for key, nano in closing.items() if nano},
            closed_ms=closed_ms,
        ),
        owed,
    )


async def _accounts(
    connection: AsyncConnection, kind: Kind, party_id: int, month: int, currency: str
) -> tuple[dict[str, int], dict[str, int]]:
    """(balances before the month, movements in it) by account; the month's are the postings' own."""
    names = TENANT_ACCOUNTS if kind == "tenant" else ("publisher_payable",)
    where = (
        account_sums.c[f"{kind}_id"] == party_id,
        account_sums.c.currency == currency,
        account_sums.c.account.in_(names),
    )
    opening: dict[str, int] = {}
    kept: dict[str, int] = {}
    for row in await connection.execute(
        select(account_sums).where(*where, account_sums.c.month <= month)
    ):
        side = kept if row.month == month else opening
        side[row.account] = side.get(row.account, 0) + row.nano
    posted = await connection.execute(
        select(postings.c.account, func.sum(postings.c.nano))
        .where(
            postings.c[f"{kind}_id"] == party_id,
            postings.c.month == month,
            postings.c.currency == currency,
            postings.c.account.in_(names),
        )
        .group_by(postings.c.account)
    )
    movements = {account: int(nano) for account, nano in posted}
    for account in kept.keys() | movements.keys():
        if kept.get(account, 0) != movements.get(account, 0):
            raise StatementWrong(
                f"{account}: the sums say {kept.get(account, 0)}, the postings "
                f"{movements.get(account, 0)}"
            )
    return opening, movements


async def _tenant_lines(
    connection: AsyncConnection, tenant_id: int, month: int, currency: str
) -> tuple[int, tuple[StatementLine, ...]]:
    rows = await connection.execute(
        select(
            usage_lines,
            models.c.name.label("model"),
            price_versions.c.version.label("version"),
        )
        .outerjoin(models, usage_lines.c.model_id == models.c.id)
        .outerjoin(price_versions, usage_lines.c.price_id == price_versions.c.id)
        .where(
            usage_lines.c.tenant_id == tenant_id,
            usage_lines.c.month == month,
            usage_lines.c.currency == currency,
        )
    )
    records = 0
    lines = []
    for row in rows.mappings():
        if row["meter"] == "records":
            records += row["units"]
            continue
        lines.append(
            StatementLine(
                model=row["model"] or "",
                meter=row["meter"],
                price_version=row["version"] or 0,
                units=row["units"],
                amount_nano=row["nano"],
            )
        )
    return records, sorted_lines(lines)


async def _publisher_lines(
    connection: AsyncConnection, publisher_id: int, month: int, currency: str
) -> tuple[int, tuple[StatementLine, ...]]:
    """What was earned, by model and by kind of entry; what was paid out is a movement, no line."""
    rows = await connection.execute(
        select(
            models.c.name,
            postings.c.kind,
            func.count(),
            func.sum(postings.c.nano),
        )
        .outerjoin(models, postings.c.model_id == models.c.id)
        .where(
            postings.c.publisher_id == publisher_id,
            postings.c.month == month,
            postings.c.currency == currency,
            postings.c.kind.in_(CHARGES),
        )
        .group_by(models.c.name, postings.c.kind)
    )
    lines = [
        StatementLine(
            model=model or "", meter=kind, price_version=0, units=count, amount_nano=-int(nano)
        )
        for model, kind, count, nano in rows
    ]
    records = sum(line.units for line in lines if line.meter == "use")
    return records, sorted_lines(lines)


async def _charged_by_postings(
    connection: AsyncConnection, tenant_id: int, month: int, currency: str
) -> int:
    found = await connection.scalar(
        select(func.sum(postings.c.nano)).where(
            postings.c.tenant_id == tenant_id,
            postings.c.month == month,
            postings.c.currency == currency,
            postings.c.kind.in_(CHARGES),
            postings.c.account.in_(TENANT_ACCOUNTS),
        )
    )
    return int(found or 0)


async def _check_records(
    connection: AsyncConnection, tenant_id: int, month: int, currency: str
) -> None:
    """What the ledger's records say they were charged is what was posted of use."""
    said = await connection.scalar(
        select(func.sum(usage_records.c.charged_nano)).where(
            usage_records.c.tenant_id == tenant_id,
            usage_records.c.month == month,
            usage_records.c.currency == currency,
        )
    )
    posted = await connection.scalar(
        select(func.sum(postings.c.nano)).where(
            postings.c.tenant_id == tenant_id,
            postings.c.month == month,
            postings.c.currency == currency,
            postings.c.kind == "use",
            postings.c.account.in_(TENANT_ACCOUNTS),
        )
    )
    if int(said or 0) != int(posted or 0):
        raise StatementWrong(
            f"the records sum to {int(said or 0)}, the postings to {int(posted or 0)}"
        )
