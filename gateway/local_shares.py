"""The part of each limit that one process may admit while the store is away.

The limit by the number of processes, from an empty bucket, so that all of them together stay within
one rate: the safe share of a client that lost its server is Doorman's (youtube/doorman). Pure: times
are arguments (Unix ms). Not here: when the store is away, and what is owed to it then
(``gateway.outages``).
"""

from quotas.buckets import TICKS, Bucket
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Level, Limit, Verdict
from quotas.offline import Credits, OfflineCredit, money_of

#: The epoch of what was admitted without the store: a settle under it is charged in full, once.
LOCAL_EPOCH = ""


class Shares:
    """Mutable. ``credit``: what was spent of configured credits, whichever shares it was."""

    def __init__(self, processes: int, credit: OfflineCredit | None = None) -> None:
        self.processes = max(1, processes)
        self.credit = credit or OfflineCredit()
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._holds: dict[tuple[str, str], int] = {}

    def clear(self) -> None:
        """A new outage begins with empty buckets: what the store had left is not known."""
        self._buckets.clear()

    def take(self, charges: tuple[Charge, ...], now_ms: int, of: Credits = ()) -> Verdict:
        """All charges or none; money on the credits given. Raises ``StoreUnavailable`` where one of
        them cannot be shared.

        A unit costs as many as there are processes, of a bucket with the whole limit's figures.
        """
        levels, binding, longest = [], -1, 0
        money = money_of(charges)
        if money and not self.credit.fits(of, money, self.processes):
            raise StoreUnavailable("money is not spent without the store")
        for index, charge in enumerate(charges):
            limit, amount = charge.limit, charge.amount * self.processes
            if limit.shadow or not charge.amount or limit.dimension == "money":
                levels.append(Level(0, 0))
                continue
            if limit.outage != "local_share" or amount > limit.capacity:
                raise StoreUnavailable("a limit cannot be shared")
            wait_ms = 0
            if limit.algorithm == "bucket":
                bucket = self._bucket(limit, now_ms)
                level = bucket.configure(limit.capacity, limit.per_minute, now_ms)
                lacking = amount * TICKS - level
                wait_ms = -(-lacking // limit.per_minute) if lacking > 0 else 0
                levels.append(Level(level // TICKS // self.processes, 0))
            elif limit.algorithm == "concurrency":
                held = self._holds.get(_name(limit), 0) * self.processes
                wait_ms = 1_000 if held + amount > limit.capacity else 0
                levels.append(Level((limit.capacity - held) // self.processes, 0))
            else:
                raise StoreUnavailable("a period's units cannot be shared")
            if wait_ms > longest:
                binding, longest = index, wait_ms
        if binding >= 0:
            of_rate = charges[binding].limit.algorithm == "bucket"
            return Verdict(
                admitted=False,
                levels=tuple(levels),
                epoch=LOCAL_EPOCH,
                binding=binding,
                retry_after_ms=longest,
                reason="rate" if of_rate else "concurrency",
            )
        self._take(charges, now_ms)
        if money:
            self.credit.move(of, money)
        return Verdict(admitted=True, levels=tuple(levels), epoch=LOCAL_EPOCH)

    def give_back(self, charges: tuple[Charge, ...]) -> None:
        """Holds of an ended request; a share of a rate is not given back."""
        for charge in charges:
            name = _name(charge.limit)
            if name in self._holds:
                left = self._holds[name] - charge.amount
                if left > 0:
                    self._holds[name] = left
                else:
                    del self._holds[name]

    def undo(self, charges: tuple[Charge, ...], now_ms: int) -> None:
        """Nothing came of what was taken."""
        self.give_back(charges)
        for charge in charges:
            if charge.limit.algorithm == "bucket" and not charge.limit.shadow and charge.amount:
                self._bucket(charge.limit, now_ms).add(charge.amount * self.processes, now_ms)

    def _take(self, charges: tuple[Charge, ...], now_ms: int) -> None:
        for charge in charges:
            if charge.limit.shadow or not charge.amount or charge.limit.dimension == "money":
                continue
            if charge.limit.algorithm == "bucket":
                bucket = self._bucket(charge.limit, now_ms)
                bucket.add(-charge.amount * self.processes, now_ms)
            else:
                name = _name(charge.limit)
                self._holds[name] = self._holds.get(name, 0) + charge.amount

    def _bucket(self, limit: Limit, now_ms: int) -> Bucket:
        name = _name(limit)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(limit.capacity, limit.per_minute, now_ms)
            bucket.level = 0
        return bucket


def _name(limit: Limit) -> tuple[str, str]:
    return limit.scope, limit.dimension
