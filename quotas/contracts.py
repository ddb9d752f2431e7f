"""Contracts: under which billing model a tenant buys. Versioned; a record is charged under the
version in force when it was admitted.

    free         nothing is owed
    payg         pay as you go: owed at the period's end, up to a credit line
    prepaid      paid from credit grants; nothing may be owed
    commitment   a minimum a month, trued up at its end; above it the overage price

A throughput term may stand beside any of them: tokens a minute of one model, paid by the hour from
acceptance, used or not. Pure values and sums. Not here: grants (``quotas.grants``), the order in
which all this meets a record (``quotas.charging``).
"""

from typing import Literal

import msgspec

from quotas.money import MILLION, divide
from quotas.months import bounds_ms

ContractKind = Literal["free", "payg", "prepaid", "commitment"]
Overflow = Literal["reject", "spill"]
HOUR_MS = 3_600_000
MINUTE_MS = 60_000


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """``credit_line_nano``: the most that may be owed, -1 = no bound. ``commitment_nano``: the
    minimum a month. ``overage_ppm`` scales prices above it: 1,200,000 is a fifth dearer.
    """

    id: int
    version: int
    tenant_id: int
    kind: ContractKind
    currency: str = "USD"
    credit_line_nano: int = -1
    commitment_nano: int = 0
    overage_ppm: int = MILLION
    from_ms: int = 0

    @property
    def pays(self) -> bool:
        return self.kind != "free"

    def credit_bound(self) -> int:
        """The most that may be owed, in nano-units; -1 where nothing bounds it."""
        if self.kind == "free":
            return -1
        return 0 if self.kind == "prepaid" else self.credit_line_nano


class ThroughputTerm(msgspec.Struct, frozen=True, kw_only=True):
    """Reserved throughput of one model. Unix ms; ``accepted_ms`` 0: only asked for, not yet sold.

    ``until_ms``: its end. ``overflow``: what happens above ``tokens_per_minute``.
    """

    id: int
    tenant_id: int
    model_id: int
    tokens_per_minute: int
    hour_nano: int
    currency: str
    overflow: Overflow
    accepted_ms: int
    until_ms: int

    def holds(self, at_ms: int) -> bool:
        return 0 < self.accepted_ms <= at_ms < self.until_ms


class TermReport(msgspec.Struct, frozen=True, kw_only=True):
    """One term in one period: hours sold, tokens sold and used in them, and what it costs.

    ``used_ppm``: tokens used of those sold, in millionths.
    """

    milliseconds: int
    sold_tokens: int
    used_tokens: int
    idle_tokens: int
    used_ppm: int
    charge_nano: int


def overage(payable_nano: int, left_nano: int, overage_ppm: int) -> tuple[int, int]:
    """(the part inside the commitment, the rest at the overage price).

    >>> overage(100, 60, 1_500_000)
    (60, 60)
    """
    inside = min(payable_nano, max(left_nano, 0))
    return inside, divide((payable_nano - inside) * overage_ppm, MILLION)


def shortfall(commitment_nano: int, used_nano: int) -> int:
    """What a period's use lacks to the commitment."""
    return max(0, commitment_nano - used_nano)


def spill(payable_nano: int, tokens: int, covered: int) -> int:
    """What is owed of a record of which ``covered`` tokens were reserved: the rest, by tokens."""
    if covered <= 0 or tokens <= 0:
        return payable_nano
    return divide(payable_nano * (tokens - min(covered, tokens)), tokens)


def report(term: ThroughputTerm, period: int, used_tokens: int) -> TermReport:
    """A term's charge and use in a period: the charge is the same whether it was used or not."""
    start_ms, end_ms = bounds_ms(period)
    held_ms = max(0, min(end_ms, term.until_ms) - max(start_ms, term.accepted_ms))
    if not term.accepted_ms:
        held_ms = 0
    sold = held_ms * term.tokens_per_minute // MINUTE_MS
    return TermReport(
        milliseconds=held_ms,
        sold_tokens=sold,
        used_tokens=used_tokens,
        idle_tokens=max(0, sold - used_tokens),
        used_ppm=divide(used_tokens * MILLION, sold) if sold else 0,
        charge_nano=divide(held_ms * term.hour_nano, HOUR_MS),
    )
