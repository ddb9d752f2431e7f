"""The port behind which reservations live: reserve, settle, release, expire, inspect, rebuild.

Every call names the ``tag`` (one per tenant: its keys share a hash slot) and a reservation id
(the request id). ``reserve`` is one atomic step over all charges. ``settle`` and ``release`` are
queued and acknowledged later through the callback, so that nothing is awaited after the answer.

Rebuilding money after the store was lost (``Verdict.epoch`` is another than before, or a refusal
says ``unbuilt``): ``epoch`` of the tag; every process holds its open requests again (``rehold``)
and ships its journal; then ``seed`` the balance and budgets from SQL, with the ids that SQL has
counted and whose settle is not acknowledged; from then on the tag admits.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from quotas.limits import Charge, Inspection, Limit, Verdict


class Settlement(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


class Seed(msgspec.Struct, frozen=True, array_like=True):
    """What SQL knows of one level of money (or of any quota): the truth of what is settled.

    ``level``: of a balance, its money in micro-units (negative = owed); of a quota, the units used
    in period ``period_id``. Holds are the store's own and stay as they are.
    """

    limit: Limit
    level: int
    period_id: str = ""


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

    async def inspect(self, tag: str, charges: Sequence[Charge]) -> Inspection:
        """What ``reserve`` would say now, and every level with its holders. Changes nothing.

        Raises ``ReservationRefused`` for malformed charges and ``StoreUnavailable``.
        """
        ...

    async def epoch(self, tag: str) -> str:
        """The tag's epoch, begun now where it has none. Raises ``StoreUnavailable``."""
        ...

    async def seed(
        self, tag: str, epoch: str, seeds: Sequence[Seed], counted: Sequence[str] = ()
    ) -> bool:
        """Set levels of money to what SQL says; the tag's money admits from here on.

        ``counted``: reservation ids that ``seeds`` includes and whose settle may still arrive: it
        will charge rates and no money. False: the tag is of another epoch, and nothing was done.
        Raises ``StoreUnavailable``.
        """
        ...

    async def adjust(
        self, tag: str, epoch: str, adjustment_id: str, limit: Limit, delta: int
    ) -> bool:
        """Move a seeded balance by ``delta`` micro-units, once an id (24 h): a top-up, a reversal.

        False: another epoch, or not seeded; the rebuild takes it from SQL. An id among ``counted``
        of a later seed is known and moves nothing. Raises ``StoreUnavailable``.
        """
        ...

    async def rehold(
        self, tag: str, reservation_id: str, epoch: str, charges: Sequence[Charge], ttl_s: int
    ) -> bool:
        """Hold an open reservation again under the epoch, whatever the levels say; once.

        False: another epoch, or the id has ended.
        Raises ``ReservationRefused`` for malformed charges and ``StoreUnavailable``.
        """
        ...

    async def claim(self, tag: str, name: str, request_id: str, ttl_s: int) -> str:
        """The request that holds ``name``: this one, for ``ttl_s``, or the one that came before.

        Raises ``StoreUnavailable``; then nothing is claimed, or given back in the background.
        """
        ...

    def unclaim(self, tag: str, name: str, request_id: str) -> None:
        """Queue; the name is free again, if this request holds it."""
        ...

    async def heartbeat(self, *, leaving: bool = False) -> int:
        """Say that this process lives (for 30 s), or leaves; how many that share the store live now.

        Raises ``StoreUnavailable``.
        """
        ...

    def settle_lag_s(self) -> float:
        """Age of the oldest settle or release not yet acknowledged; 0 when there is none."""
        ...

    async def flush(self, timeout_s: float, part: str | None = None) -> bool:
        """Wait until everything queued (for one part) is acknowledged; False when time ran out."""
        ...

    async def ping(self, part: str | None = None) -> float:
        """Round trip in seconds, of one part or the slowest; raises ``StoreUnavailable``."""
        ...

    def part(self, tag: str) -> str:
        """Which server of the store has the tag's levels now: it goes and comes back by itself. ""
        where there is but one.
        """
        ...

    def reached(self, tag: str) -> bool:
        """Whether the server that has the tag's levels now ever answered this process."""
        ...

    async def close(self) -> None:
        """Let go of the connection and background tasks; what is queued is dropped."""
        ...
