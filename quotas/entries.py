"""Double entry: accounts, and entries whose postings sum to zero in their currency.

Debits are positive. Entries are never changed: a correction is an entry that reverses another and
names it. Not here: what is charged (``quotas.charging``), rows (``gateway.store.books``).

    top-up            cash -> receivable as far as something is owed, then customer_prepaid
    use on credit     receivable -> revenue, or publisher_payable + platform_fee
    use of a grant    customer_prepaid, or promotional -> the same
    end of a grant    customer_prepaid -> breakage
    true-up           receivable -> commitment_shortfall
    reserved hours    receivable -> revenue
    payout            publisher_payable -> cash
    engines' cost     operator_cost -> cost_accrued
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from quotas.errors import MoneyError

Account = Literal[
    "cash",
    "customer_prepaid",
    "receivable",
    "revenue",
    "publisher_payable",
    "platform_fee",
    "promotional",
    "commitment_shortfall",
    "breakage",
    "operator_cost",
    "cost_accrued",
]
EntryKind = Literal[
    "use",
    "reprice",
    "reversal",
    "shortfall",
    "throughput",
    "topup",
    "topup_reversal",
    "expiry",
    "payout",
    "cost",
]
#: Kinds that charge a tenant, or undo it: what a statement's lines sum to.
CHARGES: tuple[EntryKind, ...] = ("use", "reprice", "reversal", "shortfall", "throughput")
#: What a tenant owes or has paid ahead; promotional is given to it.
TENANT_ACCOUNTS = ("customer_prepaid", "receivable", "promotional")


class Unbalanced(MoneyError):
    """Postings that do not sum to zero: our own bug, never an input's."""


class Posting(msgspec.Struct, frozen=True, array_like=True):
    """``nano`` > 0 is a debit. ``publisher_id``: of publisher_payable, else 0."""

    account: Account
    nano: int
    publisher_id: int = 0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """``key`` is unique for ever, so posting twice is impossible: "use:<request id>"."""

    key: str
    kind: EntryKind
    tenant_id: int
    currency: str
    occurred_ms: int
    postings: tuple[Posting, ...]
    model_id: int = 0
    reverses: str = ""


def balanced(entry: Entry) -> Entry:
    """The entry, if its postings sum to zero; raises ``Unbalanced``."""
    off = sum(posting.nano for posting in entry.postings)
    if off:
        raise Unbalanced(f"{entry.key}: postings are off by {off} nano")
    return entry


def move(
    key: str,
    kind: EntryKind,
    tenant_id: int,
    currency: str,
    occurred_ms: int,
    debit: Account,
    credit: Account,
    nano: int,
    publisher_id: int = 0,
) -> Entry:
    """The entry of one amount from one account to another."""

    def party(account: Account) -> int:
        return publisher_id if account == "publisher_payable" else 0

    return balanced(
        Entry(
            key=key,
            kind=kind,
            tenant_id=tenant_id,
            currency=currency,
            occurred_ms=occurred_ms,
            postings=(
                Posting(debit, nano, party(debit)),
                Posting(credit, -nano, party(credit)),
            ),
        )
    )


def reversal(entry: Entry, key: str, now_ms: int) -> Entry:
    """The entry that undoes another, booked now, linked to it."""
    return balanced(
        Entry(
            key=key,
            kind="reversal",
            tenant_id=entry.tenant_id,
            currency=entry.currency,
            occurred_ms=now_ms,
            postings=tuple(
                Posting(each.account, -each.nano, each.publisher_id) for each in entry.postings
            ),
            model_id=entry.model_id,
            reverses=entry.key,
        )
    )


def balances(entries: Iterable[Entry]) -> dict[tuple[str, str], int]:
    """(currency, account) -> nano, debits positive."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        for posting in entry.postings:
            found[entry.currency, posting.account] += posting.nano
    return dict(found)
