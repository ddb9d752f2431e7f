"""Leases of the limits that all tenants share: draws on them, and what the store is told of them.

A draw that its lease covers asks nobody. What is lacking is asked for, by as many units as that, and
the answer is the store's own verdict; more is taken in advance, beside the requests, by a second's
demand within this process's part of the limit. What is no longer worth holding goes back at once or
within half a second. Not here: the sums (``quotas.leases``), tenants' own limits and outages
(``gateway.admission``).
"""

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from gateway.telemetry.counters import Counters
from gateway.terms import scope_of
from quotas.errors import ReservationRefused, StoreUnavailable
from quotas.leases import Chunk, Closed, Draw, Lease, size_of
from quotas.limits import Charge, Level, Limit, Verdict
from quotas.ports import QuotaStore, Settlement
from quotas.reservation import Identity, identity

#: A chunk outlives whatever may be drawn from it by days; one that nobody closed was used.
CHUNK_TTL_S = 7 * 86_400
TICK_S = 0.5
#: After a refusal, or while the store is away, nothing is taken in advance for this long.
TOP_UP_PAUSE_S = 1.0
_NONE = Level(0, 0)
_log = logging.getLogger("gateway.leases")


class Held(msgspec.Struct, frozen=True):
    """What this process has of one limit: ``unspent`` in advance, ``out`` with open requests."""

    unspent: int
    out: int


class Leases:
    """One per data process, which has a ``name``. ``processes``: how many share the store, as last
    known.
    """

    def __init__(
        self,
        store: QuotaStore,
        counters: Counters,
        *,
        name: str,
        processes: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._counters = counters
        self._processes = processes
        self._monotonic = monotonic
        self._leases: dict[Identity, Lease] = {}
        self._retired: set[Lease] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.name = name
        self._life = secrets.token_hex(8)
        self._chunks = 0

    # -- requests ----------------------------------------------------------------------------

    def draw(self, charges: tuple[Charge, ...], away: Callable[[str], bool]) -> Draw:
        """Take what the leases have. ``away``: whether a tag's levels are; then holds are not counted
        on, since the store may have let them go, and nothing is taken in advance.
        """
        now_s = self._monotonic()
        draw = Draw(charges)
        for index, charge in enumerate(charges):
            holds = charge.limit.algorithm == "concurrency"
            if not charge.amount or (holds and away(tag_of(charge.limit))):
                draw.leases.append(None)
                if charge.amount:
                    draw.lacking.append((index, charge.amount))
                continue
            lease = self._of(charge, now_s)
            draw.leases.append(lease)
            lacking = lease.draw(charge.amount, now_s)
            if lacking:
                draw.lacking.append((index, lacking))
            elif lease.left < lease.low and not away(tag_of(charge.limit)):
                self._top_up(lease, now_s)
        if not draw.lacking:
            self.count("covered")
        return draw

    async def fetch(self, draw: Draw) -> Verdict | None:
        """Ask the store for what is lacking; None when the draw stands, else the refusal that binds,
        by its index in the draw's charges. Raises ``StoreUnavailable``: what was not got is lacking.
        """
        lacking, draw.lacking = draw.lacking, []
        answers = await asyncio.gather(
            *[self._ask(draw, index, units) for index, units in lacking], return_exceptions=True
        )
        binding: Verdict | None = None
        failed: BaseException | None = None
        for answer in answers:
            if isinstance(answer, BaseException):
                failed = answer
            elif answer is not None:
                worst = binding.retry_after_ms if binding is not None else 0
                if binding is None or (worst != -1 and not 0 <= answer.retry_after_ms <= worst):
                    binding = answer
        self.count("refused" if binding else "asked")
        if failed is not None and not isinstance(failed, StoreUnavailable):
            raise failed
        if binding is None and failed is not None:
            raise failed
        return binding

    def undo(self, draw: Draw) -> list[int]:
        """Draw no more on the leases that lack; the indexes of what is left to find elsewhere."""
        lacking, draw.lacking = draw.lacking, []
        for index, units in lacking:
            lease = draw.leases[index]
            if lease is not None:
                lease.undo(draw.charges[index].amount, units)
                draw.leases[index] = None
        return [index for index, _ in lacking]

    def put_back(self, draw: Draw) -> None:
        """Nothing came of it: all of it goes back."""
        self.undo(draw)
        self.settle(draw, tuple([Charge(each.limit, 0) for each in draw.charges]))

    def settle(self, draw: Draw, charged: tuple[Charge, ...]) -> None:
        """The request has ended, and used so much; acts once."""
        leases, draw.leases = draw.leases, []
        processes = self._processes()
        for lease, drew, used in zip(leases, draw.charges, charged, strict=False):
            if lease is None:
                continue
            lease.back(drew.amount, used.amount)
            most = 0 if lease.retired else size_of(lease.charge.limit, processes)
            if lease.left > most or lease.left < 0 or lease.retired:
                self._tell(lease, lease.give_back(most))
                if lease.retired and lease.idle:
                    self._retired.discard(lease)

    # -- beside requests ---------------------------------------------------------------------

    async def run(self) -> None:
        """Give back what nobody draws any more; for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        now_s, processes = self._monotonic(), self._processes()
        for name, lease in list(self._leases.items()):
            if now_s >= lease.ends_s:
                self._retire(name, lease)
                continue
            keep = lease.keep(processes, now_s)
            lease.low = keep // 2
            self._tell(lease, lease.give_back(keep))
            if lease.idle and not lease.left:
                del self._leases[name]
        for lease in list(self._retired):
            self._tell(lease, lease.give_back(0))
            if lease.idle:
                self._retired.discard(lease)

    async def regain(self, of: Callable[[str], bool]) -> None:
        """The server of these tags was away, and may have let this process's holds go: those that are
        out are held again, whatever the levels say, and none is held in advance.

        Raises ``StoreUnavailable``.
        """
        for lease in list(self._leases.values()):
            limit = lease.charge.limit
            if limit.algorithm != "concurrency" or not of(tag_of(limit)):
                continue
            chunk, epoch = None, ""
            if lease.out:
                chunk = self._chunk(lease.out)
                charge = Charge(lease.limit, chunk.amount)
                tag = tag_of(lease.limit)
                epoch = await self._store.epoch(tag)
                if not await self._store.rehold(tag, chunk.id, epoch, (charge,), CHUNK_TTL_S):
                    chunk = None
            self._tell(lease, lease.restart())
            if chunk is not None:
                self._tell(lease, lease.granted(chunk, epoch))

    def count(self, how: str) -> None:
        """How a request's units were had."""
        self._counters.add("tf_lease_draws_total", how)

    def units(self) -> dict[tuple[str, str], int]:
        """What is held unspent, by the kind of scope and the dimension."""
        found: dict[tuple[str, str], int] = defaultdict(int)
        for lease in self._leases.values():
            limit = lease.charge.limit
            found[scope_of(limit), limit.dimension] += max(0, lease.left)
        return found

    def give_all_back(self) -> None:
        """Before this process stops."""
        for lease in (*self._leases.values(), *self._retired):
            self._tell(lease, lease.give_back(0))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def held(self, limit: Limit) -> Held:
        lease = self._leases.get(identity(limit))
        return Held(max(0, lease.left), lease.out) if lease else Held(0, 0)

    # -- inside ------------------------------------------------------------------------------

    def _of(self, charge: Charge, now_s: float) -> Lease:
        name = identity(charge.limit)
        lease = self._leases.get(name)
        if lease is not None and now_s >= lease.ends_s:
            self._retire(name, lease)
            lease = None
        if lease is None:
            lease = self._leases[name] = Lease(charge)
        lease.adopt(charge)
        return lease

    def _retire(self, name: Identity, lease: Lease) -> None:
        """Its period is over: open requests end in it, and nobody draws from it."""
        lease.retired = True
        del self._leases[name]
        self._tell(lease, lease.give_back(0))
        if not lease.idle:
            self._retired.add(lease)

    async def _ask(self, draw: Draw, index: int, units: int) -> Verdict | None:
        """Get what one charge lacks. A limit cannot grant more at once than its capacity: debt that
        is larger comes in parts.
        """
        charge, lease = draw.charges[index], draw.leases[index]
        assert lease is not None
        capacity = charge.limit.capacity
        rest = units
        while rest:
            never = charge.amount > capacity
            asked = charge.amount if never else min(rest, capacity)
            try:
                verdict = await self._take(lease, charge, asked)
            except BaseException:
                draw.lacking.append((index, rest))
                raise
            got = asked
            if not verdict.admitted:
                # Others may have given back, or more was taken in advance, since it was asked.
                got = rest - min(rest, max(0, rest - lease.left - lease.asking))
                if never or not got:
                    lease.undo(charge.amount, rest)
                    draw.leases[index] = None
                    return self._refused(draw, index, lease, verdict, 0 if never else rest - asked)
            rest -= got
            lease.asking -= got
        self._top_up(lease, self._monotonic())
        return None

    def _refused(
        self, draw: Draw, index: int, lease: Lease, verdict: Verdict, more: int
    ) -> Verdict | None:
        charge = draw.charges[index]
        lease.wait_s = self._monotonic() + TOP_UP_PAUSE_S
        if charge.limit.shadow:
            draw.shadowed.append(charge.limit)
            return None
        wait_ms = verdict.retry_after_ms
        if more and wait_ms >= 0 and charge.limit.per_minute:
            wait_ms += -(-more * 60_000 // charge.limit.per_minute)
        levels = [_NONE] * len(draw.charges)
        levels[index] = verdict.levels[0]
        return Verdict(
            admitted=False,
            levels=tuple(levels),
            epoch=verdict.epoch,
            binding=index,
            retry_after_ms=wait_ms,
            reason=verdict.reason,
        )

    async def _take(self, lease: Lease, charge: Charge, units: int) -> Verdict:
        """One chunk from the store into the lease, if it admits."""
        limit, chunk = lease.limit, self._chunk(units)
        asked_s = self._monotonic()
        verdict = await self._store.reserve(
            tag_of(limit), chunk.id, (Charge(limit, units, charge.periods),), CHUNK_TTL_S
        )
        if verdict.admitted:
            self._tell(lease, lease.granted(chunk, verdict.epoch))
            if limit.algorithm == "quota":
                # By the store's clock, and no later: it said so after it was asked.
                lease.ends_s = asked_s + verdict.levels[0].reset_ms / 1000
        return verdict

    def _top_up(self, lease: Lease, now_s: float) -> None:
        """Take more in advance, beside the request, where less is left than half of what is wanted."""
        if lease.topping or now_s < lease.wait_s:
            return
        keep, left = lease.keep(self._processes(), now_s), max(0, lease.left)
        lease.low = keep // 2
        if left >= lease.low:
            return
        lease.topping = True
        work = self._topped(lease, keep - left)
        task = asyncio.get_running_loop().create_task(work, name="lease")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _topped(self, lease: Lease, units: int) -> None:
        try:
            verdict = await self._take(lease, lease.charge, units)
            admitted = verdict.admitted
        except (StoreUnavailable, ReservationRefused):
            admitted = False
        finally:
            lease.topping = False
        if not admitted:
            lease.wait_s = self._monotonic() + TOP_UP_PAUSE_S

    def _chunk(self, units: int) -> Chunk:
        self._chunks += 1
        return Chunk(f"{self._life}-{self._chunks}", units)

    def _tell(self, lease: Lease, closed: Sequence[Closed]) -> None:
        limit, periods = lease.limit, lease.charge.periods
        for each in closed:
            came_to = (Charge(limit, each.charged, periods),)
            self._store.settle(Settlement(tag_of(limit), each.chunk.id, each.epoch, came_to, {}))


def tag_of(limit: Limit) -> str:
    """Levels of one shared scope have a hash slot of their own."""
    return limit.scope
