"""The life of a reservation: which step moves it where, and what each move does to limits.

    held ----settle----> settled       true amounts replace the reserved ones, holds go free
     +----release------> released      everything goes back
     +----expire-------> expired       holds go free, nothing goes back
    expired --settle---> settled       as above, but for the holds
    expired --release--> released
    unknown --release--> tombstone     a reserve that arrives later is refused
    counted --settle---> settled       SQL's sum has its money already: rates are charged in full

Every other step leaves everything as it is, so steps may be repeated and reordered. The two-phase
transfer (pending, post, void) is TigerBeetle's. Not here: levels (``quotas.buckets``,
``quotas.tallies``), keeping times (``quotas.store``).
"""

from collections.abc import Sequence
from enum import StrEnum  # hashed by C, not by Python

from quotas.errors import ReservationRefused
from quotas.limits import MAX_EXACT, Charge, Limit


class State(StrEnum):
    HELD = "held"
    EXPIRED = "expired"
    SETTLED = "settled"
    RELEASED = "released"
    TOMBSTONE = "tombstone"
    COUNTED = "counted"


class Step(StrEnum):
    SETTLE = "settle"
    RELEASE = "release"
    EXPIRE = "expire"


TABLE: dict[State, dict[Step, State]] = {
    State.HELD: {
        Step.SETTLE: State.SETTLED,
        Step.RELEASE: State.RELEASED,
        Step.EXPIRE: State.EXPIRED,
    },
    State.EXPIRED: {Step.SETTLE: State.SETTLED, Step.RELEASE: State.RELEASED},
    State.COUNTED: {Step.SETTLE: State.SETTLED},
    State.SETTLED: {},
    State.RELEASED: {},
    State.TOMBSTONE: {},
}

#: How long a store remembers. A settled id of the store's own epoch needs no mark to be settled
#: once (unknown in the same epoch is a no-op); the mark only answers a repeated reserve. One that
#: was charged in full, and a tombstone, must outlive every retry.
ENDED_MS = 600_000
CHARGED_IN_FULL_MS = 86_400_000
TOMBSTONE_MS = 86_400_000
#: A process renews one lease a tag; without it its holds count no more.
LEASE_MS = 30_000


def after(state: State, step: Step) -> State | None:
    """The state it moves to; None when the step changes nothing."""
    return TABLE[state].get(step)


#: Scope, dimension, window.
Identity = tuple[str, str, str]


def identity(limit: Limit) -> Identity:
    """What one level is kept under: a scope has one level a dimension and window."""
    return (limit.scope, limit.dimension, limit.window)


def by_scope(limits: Sequence[Limit]) -> list[int]:
    """Indexes with the limits of one scope together, scopes in the order of their first: among equal
    waits, the first of these binds.
    """
    place = {scope: n for n, scope in enumerate(dict.fromkeys(limit.scope for limit in limits))}
    return sorted(range(len(limits)), key=lambda i: place[limits[i].scope])


def check_limits(limits: Sequence[Limit]) -> None:
    """Refuse what no single step can charge exactly: a level named twice.

    Raises ``ReservationRefused``.
    """
    if len({identity(limit) for limit in limits}) != len(limits):
        raise ReservationRefused("two charges of one reservation name the same level")


def check_amounts(amounts: Sequence[int]) -> None:
    """Refuse negative amounts and what a script's doubles would round.

    Raises ``ReservationRefused``.
    """
    if amounts and not 0 <= min(amounts) <= max(amounts) <= MAX_EXACT:
        raise ReservationRefused("a charge's amount is negative or too large to be exact")


def check_periods(charges: Sequence[Charge]) -> None:
    """Refuse a quota's charge that does not say which periods may be charged.

    Raises ``ReservationRefused``.
    """
    if any(each.limit.algorithm == "quota" and each.periods is None for each in charges):
        raise ReservationRefused("a quota's charge names no periods")


def true_amounts(
    limits: Sequence[Limit], reserved: Sequence[int], charged: Sequence[Charge]
) -> list[int]:
    """What each reserved amount truly came to, in order.

    Matched by scope, dimension and window, else by dimension (its first); without a match the
    reserved amount stands.
    """
    exact = {identity(charge.limit): charge.amount for charge in charged}
    loose = {charge.limit.dimension: charge.amount for charge in reversed(charged)}
    return [
        exact.get(identity(limit), loose.get(limit.dimension, amount))
        for limit, amount in zip(limits, reserved, strict=True)
    ]
