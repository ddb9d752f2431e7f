"""Limits as values, the charges a request makes against them, and the verdict.

Not here: where levels live (``quotas.store``), how they move (``quotas.buckets``),
and who a tenant is: a scope is an opaque string. The flat list of charges is what one atomic step
charges or refuses.

Four algorithms keep a level:

    bucket       a rate: signed level, ``capacity`` is its burst, ``per_minute`` flows back
    quota        a calendar period's sum: used and held of ``capacity`` (tokens a day, a budget a month)
    concurrency  holds at once, each under its process's lease
    balance      prepaid money: a level in micro-units whose truth is SQL, ``capacity`` is the credit line

A level is known by scope, dimension and window: one scope may have tokens a minute, a day and a
month at once. Changing any other field changes the limit, never its usage.

What a request makes by the dozen refers to nothing that refers back: the collector need not look.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from quotas.calendar import Periods
from quotas.usage import TokenUsage

Algorithm = Literal["bucket", "quota", "concurrency", "balance"]
#: What a limit counts, in integers; money in micro-units of the tenant's currency. The stores treat
#: the name as opaque but for money, which they refuse until it was seeded.
Dimension = Literal["requests", "input_tokens", "output_tokens", "tokens", "concurrency", "money"]
#: What the capacity is of. Buckets have "minute"; quotas a calendar period or "lifetime";
#: concurrency and balances "now".
Window = Literal["minute", "day", "week", "month", "lifetime", "now"]
#: While the store is away: refuse, or admit this process's share. The stores do not read it.
Outage = Literal["fail_closed", "local_share"]
#: Why a verdict refuses:
#: ``rate``: a bucket's level. ``quota``, ``quota_held``: a period's units are used up, or would do
#: but for what requests in flight hold. ``concurrency``: all holds are taken. ``balance_spent``,
#: ``balance_held``: the same two of money (balance or budget). ``unbuilt``: money not seeded in this
#: epoch. ``skewed``: neither period given covers the store's time. ``never``: more than the capacity.
Reason = Literal[
    "",
    "rate",
    "quota",
    "quota_held",
    "concurrency",
    "balance_spent",
    "balance_held",
    "unbuilt",
    "skewed",
    "never",
]

#: Cached input tokens count in thousandths of an uncached one.
FULL_WEIGHT = 1000
#: Units that stay exact when summed in a script's doubles (2**53): 2.2e9 of a currency's units.
MAX_EXACT = 2**51


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One limit of one scope, as configured.

    ``capacity``: units a full bucket holds (its burst, default one minute's limit), units of a
    quota's period, holds at once, or a balance's credit line (0 = prepaid only); at most
    ``buckets.MAX_UNITS`` for a bucket, ``MAX_EXACT`` for the others. ``per_minute``: units that flow
    back into a bucket a minute, 0 for the others. ``version`` is the row's version.

    ``shadow``: evaluated and counted in ``Verdict.shadowed``, never refused by. A request it would
    have refused is not charged to it. ``cached_permille``: what a cached prompt token counts, 0 to
    1000; applied when the true count is charged (``counted``), not when reserving.
    """

    scope: str  # "t<tenant id>", "p<project id>", "k<key id>", "k<key id>m<model id>", ...
    scope_name: str  # what the caller may be told: "tenant acme", "key acme/chatbot/ci"
    dimension: Dimension
    algorithm: Algorithm
    capacity: int
    per_minute: int
    version: int
    window: Window = "minute"
    shadow: bool = False
    cached_permille: int = FULL_WEIGHT
    outage: Outage = "fail_closed"


class Charge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``amount`` units of one limit: reserved before dispatch, or the true number at settle.

    ``periods``: this period of a quota's window and the next, in the tenant's time zone; the store
    chooses by its own time. Needed for quotas, whether reserved or settled; None for the others.
    """

    limit: Limit
    amount: int
    periods: Periods | None = None


class Level(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A limit's level right after the step: units left (negative = debt), and ms to full again.

    Left of a quota: capacity less used and held, and ms to the next period. Of a balance: what may
    still be held, credit line included, and 0.
    """

    remaining: int
    reset_ms: int


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Admitted, or refused by ``binding`` (an index into the charges, the longest wait).

    ``levels`` has one entry a charge, in order. ``retry_after_ms``: when a request of this size,
    alone, fits; -1 means not by waiting (reasons ``never`` and, of a balance or a budget for life,
    ``balance_spent``). It is a guess of 1,000 ms where others must end first (``concurrency``,
    ``quota_held``, ``balance_held``) or the store's operator must act (``unbuilt``, ``skewed``).
    A budget that is spent names the time to its next period.
    ``epoch`` names the life of the store's data; a settle carries it back. ``shadowed``: indexes of
    shadow limits that would have refused.
    """

    admitted: bool
    levels: tuple[Level, ...]
    epoch: str
    binding: int = -1
    retry_after_ms: int = 0
    reason: Reason = ""
    shadowed: tuple[int, ...] = ()


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """Holds of one process: ``lease_ms`` until they go free unless it renews them."""

    owner: str
    holds: int
    lease_ms: int


class Gauge(msgspec.Struct, frozen=True):
    """One level as ``inspect`` shows it.

    ``used``: units gone: what a bucket lacks (with debt, more than its capacity), what a period has
    used, holds taken, or 0. ``held``: of a quota or balance, held by reservations not yet settled.
    ``balance``: the money level in micro-units, seeded and settled, before holds; None for the rest
    and while unbuilt. ``holders``: who holds, for concurrency.
    """

    used: int
    held: int = 0
    balance: int | None = None
    holders: tuple[Holder, ...] = ()


class Inspection(msgspec.Struct, frozen=True):
    """What a request of these charges would get now, and each level; nothing was changed.

    ``epoch`` of the verdict is "" where the tag has none yet.
    """

    verdict: Verdict
    gauges: tuple[Gauge, ...]
    now_ms: int  # the store's clock


def charges_for(
    limits: tuple[Limit, ...],
    amounts: Mapping[str, int],
    periods: Mapping[str, Periods] | None = None,
) -> tuple[Charge, ...]:
    """One charge a limit; ``amounts`` maps dimension to units (missing = 0, still evaluated).

    ``periods`` maps window to the tenant's periods; needed where a limit is a quota.
    """
    if not periods:
        return tuple([Charge(limit, amounts.get(limit.dimension, 0)) for limit in limits])
    return tuple(
        [
            Charge(limit, amounts.get(limit.dimension, 0), periods.get(limit.window))
            for limit in limits
        ]
    )


def counted(limit: Limit, usage: TokenUsage) -> int:
    """The tokens that true counts come to for a limit of tokens: cached input by its weight.

    Rounded up. 0 for a dimension that is not of tokens.

    >>> limit = Limit("t1", "tenant a", "tokens", "bucket", 10, 10, 1, cached_permille=100)
    >>> counted(limit, TokenUsage(prompt=100, cached=55, completion=7))
    58
    """
    dimension = limit.dimension
    if dimension == "output_tokens":
        return usage.completion
    if dimension not in ("tokens", "input_tokens"):
        return 0
    prompt = usage.prompt
    if limit.cached_permille != FULL_WEIGHT and usage.cached > 0:
        cached = min(usage.cached, prompt)
        prompt += -(-cached * limit.cached_permille // FULL_WEIGHT) - cached
    return prompt + usage.completion if dimension == "tokens" else prompt
