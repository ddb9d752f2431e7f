"""Money in: credits given, taken back, ended; and what a tenant may still spend.

A paid credit first settles what is owed, and the rest is a grant. What is asked under an
Idempotency-Key is done once and answered alike ever after. Every write takes the caller's
transaction. Not here: HTTP (``gateway.control.money``), the store's level (``gateway.control.balances``).
"""

import hashlib
from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import Conflict, NotFound, insert_row
from gateway.store.contracts import contracts_of, in_force
from gateway.store.entries import Journal, balance_of, lock_books, read_closed, read_entry
from gateway.store.schema import MOVES_BALANCES, account_sums, grants, money_requests, postings
from quotas.entries import TENANT_ACCOUNTS, Entry, Posting, balanced, move
from quotas.errors import MoneyError
from quotas.grants import GrantKind
from quotas.money import format_amount

#: A record may come this late and still use the grant of its day.
EXPIRY_GRACE_MS = 6 * 3_600_000
DEFAULT_CURRENCY = "USD"
#: The store knows an adjustment's id for this long.
ADJUSTED_MS = 86_400_000
NANO_PER_MICRO = 1_000


class Credit(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be credited. ``reference``: the payment's name elsewhere, once a tenant."""

    tenant_id: int
    kind: GrantKind
    amount_nano: int
    currency: str
    reference: str
    priority: int = 100
    expires_ms: int = 0


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-units. ``available`` = unexpired grants - what is owed; ``credit_line`` -1 = no bound."""

    tenant_id: int
    currency: str
    available_nano: int
    granted_nano: int
    owed_nano: int
    credit_line_nano: int
    limited: bool


async def add_credit(connection: AsyncConnection, credit: Credit, now_ms: int) -> dict[str, Any]:
    """Give it; what was done. Raises ``Conflict`` for a reference that was used before."""
    if credit.amount_nano <= 0:
        raise MoneyError("a credit is more than 0; take one back with reverse")
    await lock_books(connection)
    key = f"topup:{credit.tenant_id}:{credit.reference}"
    if await connection.scalar(select(grants.c.id).where(grants.c.entry_key == key)) is not None:
        raise Conflict(f"the reference {credit.reference} is credited already")
    granted = credit.amount_nano
    if credit.kind == "paid":
        owed = await balance_of(connection, credit.tenant_id, "receivable", credit.currency)
        settled = max(0, min(owed, credit.amount_nano))
        granted -= settled
        await _post(connection, _topup(credit, key, settled, granted, now_ms), now_ms)
    grant_id = await insert_row(
        connection,
        grants,
        tenant_id=credit.tenant_id,
        kind=credit.kind,
        currency=credit.currency,
        amount_nano=credit.amount_nano,
        left_nano=granted,
        priority=credit.priority,
        expires_ms=credit.expires_ms,
        given_ms=now_ms,
        reference=credit.reference,
        entry_key=key,
    )
    return {
        "id": grant_id,
        "entry_key": key,
        "currency": credit.currency,
        "reference": credit.reference,
        "amount_nano": credit.amount_nano,
        "settled_nano": credit.amount_nano - granted,
    }


async def reverse_credit(
    connection: AsyncConnection, tenant_id: int, reference: str, now_ms: int
) -> dict[str, Any]:
    """Take a credit back, whole: what was used of it is owed from now on.

    Raises ``NotFound``, and ``Conflict`` when it was taken back before.
    """
    await lock_books(connection)
    key = f"topup:{tenant_id}:{reference}"
    query = select(grants).where(grants.c.entry_key == key)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no credit with the reference {reference}")
    if row["reversed_ms"]:
        raise Conflict(f"the credit {reference} is reversed already")
    left = row["left_nano"]
    entry = await read_entry(connection, key)
    if entry is not None:
        used = row["amount_nano"] - left
        postings = [Posting("cash", -row["amount_nano"])]
        postings += [Posting("customer_prepaid", left)] if left else []
        postings += [Posting("receivable", used)] if used else []
        undone = Entry(
            key=f"topup_reversal:{tenant_id}:{reference}",
            kind="topup_reversal",
            tenant_id=tenant_id,
            currency=row["currency"],
            occurred_ms=now_ms,
            postings=tuple(postings),
            reverses=key,
        )
        await _post(connection, balanced(undone), now_ms)
    await connection.execute(
        update(grants).where(grants.c.id == row["id"]).values(left_nano=0, reversed_ms=now_ms)
    )
    moved = row["amount_nano"] if entry is not None else left
    return {
        "entry_key": f"topup_reversal:{tenant_id}:{reference}",
        "currency": row["currency"],
        "reference": reference,
        "amount_nano": row["amount_nano"],
        "unused_nano": left,
        "moved_nano": -moved,
    }


async def pay_out(
    connection: AsyncConnection,
    publisher_id: int,
    nano: int,
    currency: str,
    reference: str,
    now_ms: int,
) -> int:
    """What a publisher was paid elsewhere; what is payable after it. Raises ``Conflict`` for more
    than is payable, and for a reference that was used before.
    """
    if nano <= 0:
        raise MoneyError("a payout is more than 0")
    await lock_books(connection)
    key = f"payout:{publisher_id}:{reference}"
    if await read_entry(connection, key) is not None:
        raise Conflict(f"the payout {reference} is booked already")
    found = await connection.scalar(
        select(func.sum(account_sums.c.nano)).where(
            account_sums.c.publisher_id == publisher_id, account_sums.c.currency == currency
        )
    )
    payable = -int(found or 0)
    if nano > payable:
        raise Conflict(f"{format_amount(payable)} {currency} is payable, no more")
    await _post(
        connection,
        move(key, "payout", 0, currency, now_ms, "publisher_payable", "cash", nano, publisher_id),
        now_ms,
    )
    return payable - nano


async def expire_grants(connection: AsyncConnection, now_ms: int) -> int:
    """End grants whose time is over, some hours after it; how many."""
    await lock_books(connection)
    rows = await connection.execute(
        select(grants).where(
            grants.c.left_nano > 0,
            grants.c.expires_ms > 0,
            grants.c.expires_ms <= now_ms - EXPIRY_GRACE_MS,
        )
    )
    found = list(rows.mappings())
    journal = Journal(await read_closed(connection), now_ms)
    for row in found:
        if row["kind"] == "paid":
            journal.add(
                move(
                    f"expiry:{row['id']}",
                    "expiry",
                    row["tenant_id"],
                    row["currency"],
                    now_ms,
                    "customer_prepaid",
                    "breakage",
                    row["left_nano"],
                )
            )
        await connection.execute(update(grants).where(grants.c.id == row["id"]).values(left_nano=0))
    await journal.write(connection)
    return len(found)


async def balances(
    connection: AsyncConnection, tenant_ids: Collection[int], now_ms: int
) -> dict[int, Balance]:
    """What each tenant may spend, in its contract's currency."""
    contracts = await contracts_of(connection, tenant_ids)
    wanted = sorted(tenant_ids)
    granted: dict[tuple[int, str], int] = {}
    for row in await connection.execute(
        select(
            grants.c.tenant_id, grants.c.currency, grants.c.left_nano, grants.c.expires_ms
        ).where(grants.c.tenant_id.in_(wanted), grants.c.left_nano > 0)
    ):
        if not row.expires_ms or now_ms < row.expires_ms:
            where = (row.tenant_id, row.currency)
            granted[where] = granted.get(where, 0) + row.left_nano
    owed: dict[tuple[int, str], int] = {}
    for tenant_id, currency, nano in await connection.execute(
        select(account_sums.c.tenant_id, account_sums.c.currency, account_sums.c.nano).where(
            account_sums.c.tenant_id.in_(wanted), account_sums.c.account == "receivable"
        )
    ):
        owed[tenant_id, currency] = owed.get((tenant_id, currency), 0) + nano
    found = {}
    for tenant_id in wanted:
        contract = in_force(contracts.get(tenant_id), now_ms)
        currency = contract.currency if contract else DEFAULT_CURRENCY
        line = -1 if contract is None else contract.credit_bound()
        where = (tenant_id, currency)
        found[tenant_id] = Balance(
            tenant_id=tenant_id,
            currency=currency,
            available_nano=granted.get(where, 0) - owed.get(where, 0),
            granted_nano=granted.get(where, 0),
            owed_nano=owed.get(where, 0),
            credit_line_nano=line,
            limited=line >= 0,
        )
    return found


async def levels_micro(
    connection: AsyncConnection, tenant_ids: Collection[int], now_ms: int
) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Of each, what it may spend, in micro-units rounded down, and the ids of a day's moves, all of
    which that includes: their writers wait for this transaction to end.
    """
    await lock_books(connection)
    found = await balances(connection, tenant_ids, now_ms)
    ids: dict[int, list[str]] = {}
    for move_of in await _moves(connection, now_ms - ADJUSTED_MS, now_ms, tenant_ids):
        ids.setdefault(move_of[0], []).append(move_of[1])
    return {
        tenant_id: (
            found[tenant_id].available_nano // NANO_PER_MICRO,
            tuple(ids.get(tenant_id, ())),
        )
        for tenant_id in tenant_ids
    }


async def recent_moves(
    connection: AsyncConnection,
    since_ms: int,
    now_ms: int,
    tenant_ids: Collection[int] | None = None,
) -> list[tuple[int, str, int, str]]:
    """(tenant id, adjustment id, nano-units, currency) of what moved balances since a moment beside use:
    credits and their end, reversals of paid ones, corrections, true-ups and reserved hours; of these
    tenants, or of all. What a promotion's reversal took was what was left of it then, and is not known
    any more: the next comparison finds that.
    """
    found = await _moves(connection, since_ms, now_ms, tenant_ids)
    return [
        (owner, entry_key, nano, currency)
        for owner, entry_key, nano, currency in found
        if nano is not None
    ]


async def ended_grants(
    connection: AsyncConnection,
    since_ms: int,
    now_ms: int,
    tenant_ids: Collection[int] | None = None,
) -> list[tuple[int, str, int, str]]:
    """The same of grants whose time ended in (since, now]: what is left of each cannot be spent. A late
    record of its day still may, and then the store has that much too little until it is compared.
    """
    query = select(grants).where(
        grants.c.expires_ms > since_ms, grants.c.expires_ms <= now_ms, grants.c.reversed_ms == 0
    )
    if tenant_ids is not None:
        query = query.where(grants.c.tenant_id.in_(sorted(tenant_ids)))
    rows = (await connection.execute(query.order_by(grants.c.id))).mappings()
    return [
        (row["tenant_id"], f"ended:{row['id']}", -row["left_nano"], row["currency"]) for row in rows
    ]


async def _moves(
    connection: AsyncConnection,
    since_ms: int,
    now_ms: int,
    tenant_ids: Collection[int] | None,
) -> list[tuple[int, str, int | None, str]]:
    query = select(grants).where(
        (grants.c.given_ms > since_ms) | (grants.c.reversed_ms > since_ms),
        grants.c.entry_key.startswith("topup:"),
    )
    charged = (
        select(
            postings.c.tenant_id,
            postings.c.entry_key,
            -func.sum(postings.c.nano),
            postings.c.currency,
        )
        .where(
            MOVES_BALANCES, postings.c.account.in_(TENANT_ACCOUNTS), postings.c.posted_ms > since_ms
        )
        .group_by(postings.c.tenant_id, postings.c.entry_key, postings.c.currency)
        .order_by(func.min(postings.c.id))
    )
    if tenant_ids is not None:
        query = query.where(grants.c.tenant_id.in_(sorted(tenant_ids)))
        charged = charged.where(postings.c.tenant_id.in_(sorted(tenant_ids)))
    moves: list[tuple[int, str, int | None, str]] = []
    for row in (await connection.execute(query.order_by(grants.c.id))).mappings():
        owner, nano, currency = row["tenant_id"], row["amount_nano"], row["currency"]
        moves.append((owner, row["entry_key"], nano, currency))
        if row["reversed_ms"]:
            taken = -nano if row["kind"] == "paid" else None
            moves.append((owner, f"topup_reversal:{owner}:{row['reference']}", taken, currency))
    rows = await connection.execute(charged)
    moves += [(row[0], row[1], int(row[2]), row[3]) for row in rows]
    return [*moves, *await ended_grants(connection, since_ms, now_ms, tenant_ids)]


async def list_credits(connection: AsyncConnection, tenant_id: int) -> list[dict[str, Any]]:
    """Every credit of a tenant's, oldest first."""
    rows = await connection.execute(
        select(grants).where(grants.c.tenant_id == tenant_id).order_by(grants.c.id)
    )
    return [dict(row) for row in rows.mappings()]


# -- asked once ------------------------------------------------------------------------------


async def answered_before(connection: AsyncConnection, key: str, asked: bytes) -> Any | None:
    """The answer that this key got; waits for who is asking with it right now. Raises ``Conflict``
    where it came with something else.
    """
    await lock_books(connection)
    query = select(money_requests).where(money_requests.c.idempotency_key == key)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    if bytes(row["digest"]) != hashlib.sha256(asked).digest():
        raise Conflict("the Idempotency-Key was used for another request; use a new one")
    return msgspec.json.decode(row["answer"])


async def remember_answer(
    connection: AsyncConnection, key: str, asked: bytes, answer: object, now_ms: int
) -> None:
    await connection.execute(
        insert(money_requests).values(
            idempotency_key=key,
            digest=hashlib.sha256(asked).digest(),
            answer=msgspec.json.encode(answer).decode(),
            made_ms=now_ms,
        )
    )


def _topup(credit: Credit, key: str, settled: int, granted: int, now_ms: int) -> Entry:
    postings = [Posting("cash", credit.amount_nano)]
    postings += [Posting("receivable", -settled)] if settled else []
    postings += [Posting("customer_prepaid", -granted)] if granted else []
    return balanced(
        Entry(
            key=key,
            kind="topup",
            tenant_id=credit.tenant_id,
            currency=credit.currency,
            occurred_ms=now_ms,
            postings=tuple(postings),
        )
    )


async def _post(connection: AsyncConnection, entry: Entry, now_ms: int) -> None:
    journal = Journal(await read_closed(connection), now_ms)
    journal.add(entry)
    await journal.write(connection)
