"""The port behind which reservations live: reserve, settle, release, expire.

Every call names the ``tag`` (one per tenant: its keys share a hash slot) and a reservation id
(the request id). ``reserve`` is one atomic step over all charges. ``settle`` and ``release`` are
queued and acknowledged later through the callback, so that nothing is awaited after the answer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from quotas.limits import Charge, Verdict


class Settlement(msgspec.Struct, frozen=True, array_like=True):
    """What a request cost: ``charged`` to its limits (true amounts), ``billed`` apart from it.

    ``epoch`` is the verdict's. A store whose data is of another epoch never held the reservation,
    and charges in full: what was admitted without the store (its share of an outage) is settled
    under the epoch "" and so charged, once. Limits of money are charged what is billed, in
    micro-units rounded up. A charge is matched to the stored one by scope, dimension and window,
    else by dimension; a stored charge without a match keeps its reserved amount.
    """

    tag: str
    reservation_id: str
    epoch: str
    charged: tuple[Charge, ...]
    billed: dict[str, int]


class QuotaStore(Protocol):
    """A store of levels and reservations. All methods are safe to repeat."""

    name: str  # "memory", "valkey (embedded)", "redis": shown to operators

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        """All charges or none. The second call with an admitted id returns the first verdict; a
        refusal leaves nothing behind, and its id may ask again.

        Raises ``quotas.errors.ReservationRefused`` for an id that was ended before it was reserved
        and for malformed charges (negative, inexact, a quota without periods, or one level twice),
        and ``StoreUnavailable`` when the store did not answer in time (the call is then released by
        id in the background, as is a cancelled one).
        """
        ...

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        """Queue; held or expired becomes settled, once. ``done`` runs when acknowledged."""
        ...

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        """Queue; nothing was used: everything goes back, once. Unknown id: a tombstone."""
        ...

    def expire(self, tag: str, reservation_id: str) -> None:
        """Queue; frees concurrency and refunds nothing; a later settle still counts."""
        ...

    def settle_lag_s(self) -> float:
        """Age of the oldest settle or release not yet acknowledged; 0 when there is none."""
        ...

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued is acknowledged; False when time ran out."""
        ...

    async def ping(self) -> float:
        """Round trip in seconds; raises ``StoreUnavailable``."""
        ...

    async def close(self) -> None:
        """Let go of the connection and background tasks; what is queued is dropped."""
        ...
