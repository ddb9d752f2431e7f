"""Statements as values: what a tenant was charged, or a publisher earned, in one period.

A statement is canonical JSON: sorted names, no spaces, integers only, so that the same ledger
gives the same bytes, and a signature over them can be checked by anybody. Not an invoice: no tax,
no terms of payment. Not here: signing (``gateway.signing``), rows (``gateway.store.statements``).
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from quotas.errors import MoneyError

Kind = Literal["tenant", "publisher"]
FORMAT = "tokenfactory.statement.v1"


class StatementWrong(MoneyError):
    """Lines and postings of a statement differ: nothing is closed that does not add up."""


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one meter of one price, and what they came to. An adjustment is a line as well:
    throughput covered, overage, true-up. ``price_version`` 0: of no price.
    """

    model: str
    meter: str
    price_version: int
    units: int
    amount_nano: int


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """``lines`` sum to ``charged_nano``. ``movements``: account -> nano of the period's postings,
    debits positive; ``opening`` and ``closing`` the balances around them.
    """

    format: str = FORMAT
    number: int
    kind: Kind
    party: str
    party_id: int
    period: str
    currency: str
    records: int
    lines: tuple[StatementLine, ...]
    charged_nano: int
    opening: dict[str, int]
    movements: dict[str, int]
    closing: dict[str, int]
    closed_ms: int


def checked(statement: Statement, owed_nano: int) -> Statement:
    """The statement, if its lines are what was posted (``owed_nano``); raises ``StatementWrong``."""
    lines = sum(line.amount_nano for line in statement.lines)
    if lines != statement.charged_nano or lines != owed_nano:
        raise StatementWrong(
            f"lines sum to {lines}, the statement says {statement.charged_nano}, "
            f"the ledger {owed_nano}"
        )
    accounts = statement.opening.keys() | statement.movements.keys() | statement.closing.keys()
    for account in sorted(accounts):
        opening, movement, closing = (
            side.get(account, 0)
            for side in (statement.opening, statement.movements, statement.closing)
        )
        if opening + movement != closing:
            raise StatementWrong(f"{account}: {opening} + {movement} is not {closing}")
    return statement


def sorted_lines(lines: Iterable[StatementLine]) -> tuple[StatementLine, ...]:
    """Lines of nothing are left out."""
    kept = (line for line in lines if line.units or line.amount_nano)
    return tuple(sorted(kept, key=lambda line: (line.model, line.price_version, line.meter)))


def canonical(value: Statement | Mapping[str, object]) -> bytes:
    """The bytes that are hashed and signed."""
    return msgspec.json.encode(value, order="sorted")


def digest(document: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(document).hexdigest()
