"""One process's lease of a limit that all tenants share: units taken from the store before they are
asked for, spent here.

A level that every tenant charges lies in another hash slot than theirs, so no one step can charge
both. A process takes some of it in advance, and requests draw from that. What is out is what open
requests drew; what is spent waits to be told to the store. Units come in chunks, each a reservation
of the store's, and

    sum of open chunks = left + out + spent

holds after every move. A chunk is closed by its settle: what it truly came to is charged and the
rest goes back. A process that dies leaves its chunks open, and the store counts them as used: so
that what all processes spend is never more than was taken. ``left`` below 0 is debt (a request that
came to more than it drew): the next draw asks for it as well.

Pure: times are monotonic seconds and arguments. Not here: asking (``gateway.leases``), the levels
themselves (``quotas.store``). Capacity leases are Doorman's (youtube/doorman); taken before they are
used, because what is reported afterwards overshoots by what was not reported yet.
"""

import msgspec

from quotas.limits import Charge, Limit

#: All processes together hold at most this part of a limit unspent: one in ten.
PART = 10
#: What requests drew within the last second or two is worth holding in advance.
DEMAND_S = 1.0
#: More open chunks than this are closed as they are used up, whether that gives anything back or not.
CHUNKS_MAX = 16


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A reservation of the store's, open."""

    id: str
    amount: int


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """A chunk to be settled, and what it came to: more than its amount where debt is repaid."""

    chunk: Chunk
    charged: int
    epoch: str


def size_of(limit: Limit, processes: int) -> int:
    """The most that one process may hold unspent."""
    return limit.capacity // (PART * max(1, processes))


class Lease:
    """Mutable. ``asking``: units that draws wait for; ``topping``: more is being taken in advance,
    as it is when less than ``low`` is left.
    """

    __slots__ = (
        "_demand",
        "_demand_before",
        "_second",
        "asking",
        "charge",
        "chunks",
        "ends_s",
        "epoch",
        "left",
        "limit",
        "low",
        "out",
        "retired",
        "spent",
        "topping",
        "wait_s",
    )

    def __init__(self, charge: Charge) -> None:
        self.charge = charge
        self.limit = _enforced(charge.limit)
        self.epoch = ""
        self.chunks: list[Chunk] = []
        self.left = 0
        self.low = 0
        self.out = 0
        self.spent = 0
        self.asking = 0
        self.topping = False
        self.retired = False  # its period is over: nothing is drawn from it any more
        self.ends_s = float("inf")  # of its period
        self.wait_s = 0.0  # nothing is taken in advance before then
        self._second = 0.0
        self._demand = 0
        self._demand_before = 0

    @property
    def idle(self) -> bool:
        return not (self.chunks or self.out or self.asking or self.topping)

    def adopt(self, charge: Charge) -> None:
        """Go on under the newest figures and periods."""
        if charge.limit is not self.charge.limit:
            self.limit = _enforced(charge.limit)
        self.charge = charge

    def draw(self, amount: int, now_s: float) -> int:
        """Take ``amount``; how much of it is not covered, and waited for from here on: it is granted,
        or else ``undo`` ends it. What others wait for is theirs.
        """
        self._note(amount, now_s)
        self.left -= amount
        self.out += amount
        lacking = max(0, -self.left - self.asking)
        self.asking += lacking
        return lacking

    def undo(self, drew: int, lacking: int) -> None:
        """Nothing came of a draw that still waited for so much. One step: who draws in between must
        see neither the units that it will not get nor its want of them.
        """
        self.asking -= lacking
        self.back(drew, 0)

    def back(self, drew: int, used: int) -> None:
        """A request that drew has ended, and used so much."""
        self.out -= drew
        self.spent += used
        self.left += drew - used

    def granted(self, chunk: Chunk, epoch: str) -> list[Closed]:
        """The store gave a chunk. In another epoch it has forgotten the others: what was spent of
        them is charged anew, nothing of them is left, and what is out is debt.
        """
        closed: list[Closed] = []
        if epoch != self.epoch:
            closed = self._write_off()
            self.epoch = epoch
        self.chunks.append(chunk)
        self.left += chunk.amount
        return closed

    def keep(self, processes: int, now_s: float) -> int:
        """Units worth holding: what a second's requests draw, within this process's part."""
        if self.retired:
            return 0
        self._note(0, now_s)
        demand = max(self._demand, self._demand_before)
        return min(size_of(self.charge.limit, processes), demand)

    def give_back(self, keep: int) -> list[Closed]:
        """Close what can be closed: chunks whose rest is not wanted, debt, and too many of them."""
        closed: list[Closed] = []
        if self.left < 0 and self.asking:
            return closed  # not debt: draws that wait for their units
        for exact in (True, False):  # at first those that give back no more than need be
            for chunk in list(self.chunks):
                more = self.left > keep
                if not exact and not more:
                    break
                if not (more or self.left < 0 or not keep or len(self.chunks) > CHUNKS_MAX):
                    break
                excess = self.left - keep if more else min(0, self.left)
                least = max(0, chunk.amount - self.spent)  # the rest of it is out, or wanted
                if exact and least > max(0, excess):
                    continue
                back = excess if excess < 0 else min(max(excess, least), chunk.amount, self.left)
                used = chunk.amount - back
                if used > self.spent:
                    continue
                self.chunks.remove(chunk)
                self.left -= back
                self.spent -= used
                closed.append(Closed(chunk, used, self.epoch))
        return closed

    def restart(self) -> list[Closed]:
        """Holds that may have gone free elsewhere: none is counted on, what is out is debt."""
        closed = self._write_off()
        self.epoch = ""
        return closed

    def _write_off(self) -> list[Closed]:
        closed = []
        for chunk in self.chunks:
            closed.append(Closed(chunk, self.spent, self.epoch))
            self.spent = 0
        self.chunks = []
        self.left = -self.out - self.spent
        return closed

    def _note(self, amount: int, now_s: float) -> None:
        passed_s = now_s - self._second
        if passed_s >= DEMAND_S:
            self._demand_before = self._demand if passed_s < 2 * DEMAND_S else 0
            self._demand = 0
            self._second = now_s
        self._demand += amount


class Draw:
    """What one request drew: ``leases[i]`` covers ``charges[i]``, or None: nothing was drawn for it.

    ``lacking``: (index, units) still to be asked for. ``shadowed``: limits that would have refused.
    ``shared``: indexes of what was admitted without the store, from this process's share.
    """

    __slots__ = ("charges", "lacking", "leases", "shadowed", "shared")

    def __init__(self, charges: tuple[Charge, ...]) -> None:
        self.charges = charges
        self.leases: list[Lease | None] = []
        self.lacking: list[tuple[int, int]] = []
        self.shadowed: list[Limit] = []
        self.shared: tuple[int, ...] = ()


def _enforced(limit: Limit) -> Limit:
    """What the store is asked for: to it a shadow limit is one like any other; who obeys is decided
    by who asks.
    """
    return msgspec.structs.replace(limit, shadow=False) if limit.shadow else limit
