"""The life of a reservation: which step moves it where, and what each move does to limits.

    held ----settle----> settled       true amounts replace the reserved ones, holds go free
     +----release------> released      everything goes back
     +----expire-------> expired       holds go free, nothing goes back
    expired --settle---> settled       as above, but for the holds
    expired --release--> released
    unknown --release--> tombstone     a reserve that arrives later is refused

Every other step leaves everything as it is, so steps may be repeated and reordered. The two-phase
transfer (pending, post, void) is TigerBeetle's. Not here: levels (``quotas.buckets``), keeping
times (``quotas.store``).
"""

from collections.abc import Sequence
from enum import StrEnum  # hashed by C, not by Python

from quotas.errors import ReservationRefused
from quotas.limits import Charge, Verdict


class State(StrEnum):
    HELD = "held"
    EXPIRED = "expired"
    SETTLED = "settled"
    RELEASED = "released"
    TOMBSTONE = "tombstone"


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
#: Nobody knows when another request ends.
CONCURRENCY_RETRY_MS = 1_000

Identity = tuple[str, str]


class Reservation:
    """Mutable by ``move`` alone. A tombstone has neither charges nor verdict."""

    __slots__ = ("charges", "state", "verdict")

    def __init__(
        self, state: State, charges: tuple[Charge, ...] = (), verdict: Verdict | None = None
    ) -> None:
        self.state = state
        self.charges = charges
        self.verdict = verdict

    def move(self, step: Step) -> State | None:
        """The state it was in, when the step applies; None when the step changes nothing."""
        before = self.state
        after = TABLE[before].get(step)
        if after is None:
            return None
        self.state = after
        return before


def identity(charge: Charge) -> Identity:
    """What one level is kept under: a scope has one level a dimension."""
    return (charge.limit.scope, charge.limit.dimension)


def check_charges(charges: Sequence[Charge]) -> None:
    """Refuse what no single step can charge exactly: a limit named twice, a negative amount.

    Raises ``ReservationRefused``.
    """
    names = {(charge.limit.scope, charge.limit.dimension) for charge in charges}
    if len(names) != len(charges):
        raise ReservationRefused("two charges of one reservation name the same scope and dimension")
    if any(charge.amount < 0 for charge in charges):
        raise ReservationRefused("a charge has a negative amount")


def true_amounts(stored: Sequence[Charge], charged: Sequence[Charge]) -> list[int]:
    """What each stored charge truly came to, in order.

    Matched by scope and dimension, else by dimension (its first); without a match the reserved
    amount stands.
    """
    if len(stored) == len(charged):  # the common case: the same limits, in the same order
        pairs = list(zip(stored, charged, strict=True))
        if all(a.limit is b.limit or identity(a) == identity(b) for a, b in pairs):
            return [charge.amount for charge in charged]
    exact = {identity(charge): charge.amount for charge in charged}
    loose = {charge.limit.dimension: charge.amount for charge in reversed(charged)}
    return [
        exact.get(identity(charge), loose.get(charge.limit.dimension, charge.amount))
        for charge in stored
    ]
