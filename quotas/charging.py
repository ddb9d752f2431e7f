"""One record becomes one charge: price, then throughput term, then contract, then grants, then who
earns it. Everything it depends on is an argument; what it uses up (grants, a term's minute, a
commitment) is state handed in and moved here, in the order of the ledger.

    list (what the price says) -> payable (less what a term covers) -> charged (as the contract
    says) -> paid from grants, or owed -> publishers' parts, the platform's

Not here: rows and transactions (``gateway.store.books``).
"""

from collections.abc import Sequence

import msgspec

from quotas.contracts import MINUTE_MS, Contract, ThroughputTerm, overage, spill
from quotas.entries import Entry, Posting, balanced
from quotas.grants import Draw, Grant, draw
from quotas.pricing import Line, Price, rate, total
from quotas.record import UsageRecord
from quotas.shares import Share, share_out

FREE = "free"


class Account(msgspec.Struct, kw_only=True):
    """What a tenant's charges use up. Mutable.

    ``grants``: in order. ``committed``: month -> nano charged within the commitment. ``reserved``:
    (term id, minute) -> tokens used of it, for the report of what stood idle.
    """

    grants: list[Grant] = []
    committed: dict[int, int] = {}
    reserved: dict[tuple[int, int], int] = {}


class Charged(msgspec.Struct, frozen=True, kw_only=True):
    """``lines`` at the price; ``list_nano`` their sum; ``payable_nano`` less what the term covered
    (``covered_tokens``); ``charged_nano`` what the contract makes of it, ``inside_nano`` of that
    within the commitment.
    """

    lines: tuple[Line, ...]
    list_nano: int
    payable_nano: int
    charged_nano: int
    covered_tokens: int
    inside_nano: int
    draws: tuple[Draw, ...]
    entry: Entry | None


class Rated(msgspec.Struct, frozen=True):
    """A record's lines at its price. ``covered``: tokens that a throughput term pays for."""

    lines: tuple[Line, ...]
    tokens: int
    covered: int

    def listed(self) -> int:
        return total(self.lines)

    def payable(self) -> int:
        return spill(total(self.lines), self.tokens, self.covered)


NOTHING = Charged(
    lines=(),
    list_nano=0,
    payable_nano=0,
    charged_nano=0,
    covered_tokens=0,
    inside_nano=0,
    draws=(),
    entry=None,
)


def charge(
    record: UsageRecord,
    price: Price | None,
    contract: Contract | None,
    term: ThroughputTerm | None,
    account: Account,
    shares: Sequence[Share],
    month: int,
    key: str = "",
    covered: int | None = None,
    lines: tuple[Line, ...] | None = None,
) -> Charged:
    """Charge one record; moves ``account``. ``month``: the one it is booked in. ``covered``: tokens
    that a term covered when it was charged before; None = all where it was admitted on one.
    ``lines``: where the record was rated at this price already.

    A record without a price, or without a contract, is free.
    """
    if price is None:
        return NOTHING
    rated = _rated(record, price, term, account, covered, lines)
    charged, inside, draws, owed = _pay(rated.payable(), contract, account, month, record)
    entry = None
    if charged:
        entry = balanced(
            Entry(
                key=key or f"use:{record.request_id}",
                kind="use",
                tenant_id=record.tenant_id,
                currency=price.currency,
                occurred_ms=record.started_ms,
                postings=_postings(draws, owed, rated.tokens, shares),
                model_id=record.model_id,
            )
        )
    return Charged(
        lines=rated.lines,
        list_nano=rated.listed(),
        payable_nano=rated.payable(),
        charged_nano=charged,
        covered_tokens=rated.covered,
        inside_nano=inside,
        draws=draws,
        entry=entry,
    )


def charge_hours(
    term: ThroughputTerm,
    nano: int,
    tokens: int,
    account: Account,
    shares: Sequence[Share],
    key: str,
    at_ms: int,
) -> tuple[Entry, tuple[Draw, ...]]:
    """The entry of a term's hours in one month, used or not; ``tokens`` for publishers' floors."""
    draws, owed = draw(account.grants, nano, at_ms)
    entry = Entry(
        key=key,
        kind="throughput",
        tenant_id=term.tenant_id,
        currency=term.currency,
        occurred_ms=at_ms,
        postings=_postings(draws, owed, tokens, shares),
        model_id=term.model_id,
    )
    return balanced(entry), draws


def _rated(
    record: UsageRecord,
    price: Price,
    term: ThroughputTerm | None,
    account: Account,
    covered: int | None,
    lines: tuple[Line, ...] | None,
) -> Rated:
    """What admission froze: the price's version, and whether reserved throughput covers it."""
    usage = record.usage
    tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    if covered is None:
        covered = 0
        if term is not None and record.reserved:
            covered = tokens
            minute = record.started_ms // MINUTE_MS
            used = account.reserved.get((term.id, minute), 0)
            account.reserved[term.id, minute] = used + tokens
    if lines is None:
        lines = rate(price, usage, record.operation, record.started_ms)
    return Rated(lines, tokens, covered)


def _pay(
    payable: int, contract: Contract | None, account: Account, month: int, record: UsageRecord
) -> tuple[int, int, tuple[Draw, ...], int]:
    """(charged, of that within the commitment, what grants pay, what is owed)."""
    if contract is None or contract.kind == FREE:
        return 0, 0, (), 0
    if contract.kind == "commitment":
        used = account.committed.get(month, 0)
        inside, above = overage(payable, contract.commitment_nano - used, contract.overage_ppm)
        account.committed[month] = used + inside
        return inside + above, inside, (), inside + above
    draws, owed = draw(account.grants, payable, record.started_ms)
    return payable, 0, draws, owed


def _postings(
    draws: Sequence[Draw], owed: int, tokens: int, shares: Sequence[Share]
) -> tuple[Posting, ...]:
    """Who pays, then who earns. A promotion is nobody's sale: publishers share the rest."""
    paid = sum(each.nano for each in draws if each.kind == "paid")
    promoted = sum(each.nano for each in draws if each.kind == "promotional")
    postings = []
    if paid:
        postings.append(Posting("customer_prepaid", paid))
    if owed:
        postings.append(Posting("receivable", owed))
    if promoted:
        postings.append(Posting("promotional", promoted))
        postings.append(Posting("revenue", -promoted))
    net = paid + owed
    if not shares:
        if net:
            postings.append(Posting("revenue", -net))
        return tuple(postings)
    parts, platform = share_out(net, tokens, shares)
    for share, part in zip(shares, parts, strict=True):
        if part:
            postings.append(Posting("publisher_payable", -part, share.publisher_id))
    if platform:
        postings.append(Posting("platform_fee", -platform))
    return tuple(postings)
