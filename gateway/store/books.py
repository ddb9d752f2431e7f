"""New records are charged in the transaction that inserts them: postings, sums and what was used up.

One batch at a time, in the ledger's order, under the books' lock: state is read once, moved by
``quotas.charging``, and written once. Not here: the records' own rows (``gateway.store.ledger``),
money in (``gateway.store.credit``), corrections (``gateway.store.corrections``).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.contracts import contracts_of, in_force, terms_of
from gateway.store.entries import Closed, Journal, add_up, read_closed
from gateway.store.publishers import Dated, read_costs, read_shares
from gateway.store.schema import commitment_use, grants, throughput_use, usage_lines
from quotas.charging import Account, Charged, charge
from quotas.contracts import MINUTE_MS, Contract, ThroughputTerm
from quotas.costs import EndpointCost, attempts_cost
from quotas.entries import move
from quotas.grants import Grant, in_order
from quotas.pricing import Line, Price
from quotas.record import UsageRecord
from quotas.shares import Share

RECORDS = "records"
FREE_TIER = "free_tier"
COVERED = "throughput_covered"
OVERAGE = "overage"
LineKey = tuple[int, int, str, int, int, str]  # tenant, month, currency, model, price, meter
Rated = tuple[UsageRecord, Price | None, tuple[Line, ...]]


class Booked(msgspec.Struct, frozen=True):
    """What a record's row says of its charge."""

    month: int
    charged_nano: int
    covered_tokens: int
    operator_cost_nano: int


class Books:
    """The books' state as far as one batch needs it. Made by ``open_books``, written once."""

    def __init__(self, closed: Closed, now_ms: int) -> None:
        self.closed = closed
        self.journal = Journal(closed, now_ms)
        self.contracts: dict[int, list[Contract]] = {}
        self.terms: dict[int, list[ThroughputTerm]] = {}
        self.accounts: dict[tuple[int, str], Account] = {}
        self.shares: Dated[Share] = Dated()
        self.costs: Dated[EndpointCost] = Dated()
        self.lines: Counter[LineKey] = Counter()
        self.amounts: Counter[LineKey] = Counter()
        self._left: dict[int, int] = {}
        self._committed: dict[tuple[int, int], int] = {}
        self._reserved: dict[tuple[int, int], int] = {}
        self._costs: Counter[tuple[int, str]] = Counter()
        self._first = ""

    def account(self, tenant_id: int, currency: str) -> Account:
        return self.accounts.setdefault((tenant_id, currency), Account())

    def contract(self, tenant_id: int, currency: str, at_ms: int) -> Contract | None:
        """The one in force, as it applies to a price's currency: a commitment in another is none."""
        found = in_force(self.contracts.get(tenant_id), at_ms)
        if found is None or found.currency == currency or not found.pays:
            return found
        return msgspec.structs.replace(found, kind="payg", currency=currency)

    def book(self, record: UsageRecord, price: Price | None, lines: tuple[Line, ...]) -> Booked:
        """Charge one record and collect what it leaves."""
        month = self.closed.open_month("tenant", record.tenant_id, record.started_ms)
        cost_nano = self._cost(record)
        if price is None:
            return Booked(month, 0, 0, cost_nano)
        charged = charge(
            record,
            price,
            self.contract(record.tenant_id, price.currency, record.started_ms),
            self._term(record),
            self.account(record.tenant_id, price.currency),
            self.shares.at(record.model_id, record.started_ms),
            month,
            lines=lines,
        )
        if charged.entry is not None:
            self.journal.add(charged.entry)
        self.list_lines(record, price, charged, month)
        return Booked(month, charged.charged_nano, charged.covered_tokens, cost_nano)

    def list_lines(
        self, record: UsageRecord, price: Price, charged: Charged, month: int, count: int = 1
    ) -> None:
        """The statement's lines: meters at the price, then what made another sum of them."""
        where = (record.tenant_id, month, price.currency, record.model_id, price.id)
        lines, amounts = self.lines, self.amounts
        lines[*where, RECORDS] += count
        for line in charged.lines:
            key = (*where, line.meter)
            lines[key] += line.units
            amounts[key] += line.amount
        if charged.covered_tokens:
            lines[*where, COVERED] += charged.covered_tokens
            amounts[*where, COVERED] += charged.payable_nano - charged.list_nano
        change = charged.charged_nano - charged.payable_nano
        if change:
            kind = OVERAGE if charged.charged_nano else FREE_TIER
            lines[*where, kind] += 1
            amounts[*where, kind] += change

    def give(self, tenant_id: int, currency: str, grant: Grant) -> None:
        """A grant made in this transaction may be drawn from in it."""
        account = self.account(tenant_id, currency)
        account.grants = in_order([*account.grants, grant])
        self._left[grant.id] = grant.left_nano

    def add_line(
        self,
        tenant_id: int,
        month: int,
        currency: str,
        model_id: int,
        meter: str,
        units: int,
        nano: int,
    ) -> None:
        """A line of no price: a true-up, a month's reserved hours."""
        where = (tenant_id, month, currency, model_id, 0, meter)
        self.lines[where] += units
        self.amounts[where] += nano

    async def write(self, connection: AsyncConnection) -> None:
        """Everything collected, in the caller's transaction."""
        for (tenant_id, currency), nano in sorted(self._costs.items()):
            key = f"cost:{self._first}:{tenant_id}:{currency}"
            self.journal.add(
                move(
                    key,
                    "cost",
                    tenant_id,
                    currency,
                    self.journal.now_ms,
                    "operator_cost",
                    "cost_accrued",
                    nano,
                )
            )
        await self.journal.write(connection)
        await self._write_lines(connection)
        await self._write_used(connection)

    # -- reading -----------------------------------------------------------------------------

    async def read_grants(self, connection: AsyncConnection, tenant_ids: Collection[int]) -> None:
        rows = await connection.execute(
            select(grants).where(grants.c.tenant_id.in_(sorted(tenant_ids)), grants.c.left_nano > 0)
        )
        held: dict[tuple[int, str], list[Grant]] = {}
        for row in rows.mappings():
            grant = Grant(
                id=row["id"],
                kind=row["kind"],
                left_nano=row["left_nano"],
                priority=row["priority"],
                expires_ms=row["expires_ms"],
            )
            held.setdefault((row["tenant_id"], row["currency"]), []).append(grant)
            self._left[grant.id] = grant.left_nano
        for where, found in held.items():
            self.account(*where).grants = in_order(found)

    async def read_used(self, connection: AsyncConnection, records: Sequence[Rated]) -> None:
        """Commitments and the terms' minutes as far as they were used by now."""
        committed = await connection.execute(
            select(commitment_use).where(commitment_use.c.tenant_id.in_(sorted(self.contracts)))
        )
        for row in committed:
            for contract in self.contracts[row.tenant_id][:1]:
                self.account(row.tenant_id, contract.currency).committed[row.month] = row.nano
                self._committed[row.tenant_id, row.month] = row.nano
        if not self.terms:
            return
        terms = [term.id for found in self.terms.values() for term in found]
        minutes = {record.started_ms // MINUTE_MS for record, _, _ in records}
        used = await connection.execute(
            select(throughput_use).where(
                throughput_use.c.term_id.in_(terms), throughput_use.c.minute.in_(sorted(minutes))
            )
        )
        for row in used:
            self._reserved[row.term_id, row.minute] = row.tokens
        for tenant_id, found in self.terms.items():
            mine = {term.id for term in found}
            kept = {key: tokens for key, tokens in self._reserved.items() if key[0] in mine}
            for where, account in self.accounts.items():
                if where[0] == tenant_id:
                    account.reserved = kept

    # -- one record --------------------------------------------------------------------------

    def _term(self, record: UsageRecord) -> ThroughputTerm | None:
        """The newest that was sold when the record was admitted on it: the moment of its end is known
        at the door a little later.
        """
        if not record.reserved:
            return None
        sold = [
            term
            for term in self.terms.get(record.tenant_id, ())
            if term.model_id == record.model_id and 0 < term.accepted_ms <= record.started_ms
        ]
        return max(sold, key=lambda term: term.accepted_ms, default=None)

    def _cost(self, record: UsageRecord) -> int:
        """The attempts' cost to the operator, in nano-units of whatever currency; posted by batch."""
        self._first = self._first or record.request_id
        if not self.costs:
            return 0
        costs: dict[int, EndpointCost] = {}
        for attempt in record.attempts:
            for cost in self.costs.at(attempt.endpoint_id, record.started_ms):
                costs[attempt.endpoint_id] = cost
        spent = attempts_cost(record.attempts, costs)
        for currency, nano in spent.items():
            self._costs[record.tenant_id, currency] += nano
        return sum(spent.values())

    # -- writing -----------------------------------------------------------------------------

    async def _write_lines(self, connection: AsyncConnection) -> None:
        await add_up(
            connection,
            usage_lines,
            ("units", "nano"),
            [
                {
                    "tenant_id": tenant_id,
                    "month": month,
                    "currency": currency,
                    "model_id": model_id,
                    "price_id": price_id,
                    "meter": meter,
                    "units": self.lines[tenant_id, month, currency, model_id, price_id, meter],
                    "nano": self.amounts[tenant_id, month, currency, model_id, price_id, meter],
                }
                for tenant_id, month, currency, model_id, price_id, meter in sorted(self.lines)
            ],
        )

    async def _write_used(self, connection: AsyncConnection) -> None:
        left = [
            {"grant": grant.id, "left": grant.left_nano}
            for account in self.accounts.values()
            for grant in account.grants
            if self._left[grant.id] != grant.left_nano
        ]
        if left:
            await connection.execute(
                update(grants)
                .where(grants.c.id == bindparam("grant"))
                .values(left_nano=bindparam("left")),
                left,
            )
        committed: list[Mapping[str, Any]] = []
        reserved: dict[tuple[int, int], Mapping[str, Any]] = {}
        for (tenant_id, _), account in self.accounts.items():
            for month, nano in account.committed.items():
                more = nano - self._committed.get((tenant_id, month), 0)
                if more:
                    committed.append({"tenant_id": tenant_id, "month": month, "nano": more})
            for (term_id, minute), tokens in account.reserved.items():
                more = tokens - self._reserved.get((term_id, minute), 0)
                if more:
                    month = self.closed.open_month("tenant", tenant_id, minute * MINUTE_MS)
                    reserved[term_id, minute] = {
                        "term_id": term_id, "minute": minute, "month": month, "tokens": more,
                    }  # fmt: skip
        await add_up(connection, commitment_use, ("nano",), committed)
        await add_up(connection, throughput_use, ("tokens",), list(reserved.values()))


async def open_books(connection: AsyncConnection, records: Sequence[Rated], now_ms: int) -> Books:
    """State for a batch. The caller holds the books' lock (``entries.lock_books``)."""
    books = Books(await read_closed(connection), now_ms)
    tenant_ids = {record.tenant_id for record, _, _ in records}
    books.contracts = await contracts_of(connection, tenant_ids)
    books.terms = await terms_of(connection, tenant_ids)
    for record, price, _ in records:
        if price is not None:
            books.account(record.tenant_id, price.currency)
    await books.read_grants(connection, tenant_ids)
    await books.read_used(connection, records)
    books.shares = await read_shares(connection, {record.model_id for record, _, _ in records})
    attempts = {each.endpoint_id for record, _, _ in records for each in record.attempts}
    books.costs = await read_costs(connection, attempts)
    return books


async def book_records(
    connection: AsyncConnection, records: Sequence[Rated], now_ms: int
) -> tuple[list[Booked], Books]:
    """Charge a batch; the rows' part of it in order, and the books to ``write``."""
    books = await open_books(connection, records, now_ms)
    return [books.book(record, price, lines) for record, price, lines in records], books
