"""Limits as values, the charges a request makes against them, and the verdict.

Not here: where levels live (``quotas.store``), how they move (``quotas.buckets``), and who a tenant
is: a scope is an opaque string. The flat list of charges is what one atomic step charges or refuses.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Algorithm = Literal["bucket", "concurrency"]
#: What a limit counts. The stores treat the name as opaque.
Dimension = Literal["requests", "tokens", "concurrency"]


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One limit of one scope, as configured.

    ``capacity``: units a full bucket holds (``burst``, default one minute's limit), or the number
    of holds at once for concurrency. ``per_minute``: units that flow back a minute (0 for
    concurrency). ``version`` is the row's version; a change keeps the level.
    """

    scope: str  # "t<tenant id>", "p<project id>" or "k<key id>"
    scope_name: str  # what the caller may be told: "tenant acme", "key acme/chatbot/ci"
    dimension: Dimension
    algorithm: Algorithm
    capacity: int
    per_minute: int
    version: int


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """``amount`` units of one limit: reserved before dispatch, or the true number at settle."""

    limit: Limit
    amount: int


class Level(msgspec.Struct, frozen=True, array_like=True):
    """A limit's level right after the step: units left (negative = debt), and ms to full again."""

    remaining: int
    reset_ms: int


class Verdict(msgspec.Struct, frozen=True):
    """Admitted, or refused by ``binding`` (an index into the charges, the longest wait).

    ``levels`` has one entry a charge, in order. ``retry_after_ms``: when a request of this size,
    alone, fits; -1 means never (amount > capacity). For concurrency it is a guess of 1,000 ms.
    ``epoch`` names the life of the store's data; a settle carries it back.
    """

    admitted: bool
    levels: tuple[Level, ...]
    epoch: str
    binding: int = -1
    retry_after_ms: int = 0


def charges_for(limits: tuple[Limit, ...], amounts: Mapping[str, int]) -> tuple[Charge, ...]:
    """One charge a limit; ``amounts`` maps dimension to units (missing = 0, still evaluated)."""
    return tuple(Charge(limit, amounts.get(limit.dimension, 0)) for limit in limits)
