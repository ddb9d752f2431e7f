"""Asking the store for a reservation, and what to do while it does not answer.

A store that is away is not asked again by requests: one task knocks until it answers. Meanwhile a
limit whose policy says so is shared: this process admits its part (the limit by the number of
processes), from an empty bucket, so that all of them together stay within one rate; everything else
is refused. What was admitted here is charged to the store before it is asked again: ended requests
by their true counts, open ones by what they reserved. The safe share of a client that lost its server
is Doorman's (youtube/doorman). Money that the store does not know is counted anew first.

Not here: levels (``quotas.store``), sums of money (``gateway.balances``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from gateway.balances import Balances
from gateway.leases import Leases, tag_of
from gateway.snapshot import Principal
from quotas.buckets import TICKS, Bucket
from quotas.charges import settled_as
from quotas.errors import StoreUnavailable
from quotas.leases import Draw
from quotas.limits import Charge, Level, Limit, Verdict
from quotas.offline import Credits, OfflineCredit, money_of
from quotas.ports import QuotaStore, Settlement

#: Between two knocks at a store that is away.
KNOCK_S = 0.25
#: What is owed after an outage is acknowledged within this, or the store counts as away still.
REPAY_S = 5.0
#: The epoch of what was admitted without the store: a settle under it is charged in full, once.
LOCAL_EPOCH = ""
_log = logging.getLogger("gateway.admission")
#: Tag and request: a request that drew from shared limits is open under their tags as well.
_Key = tuple[str, str]
#: What was admitted without the store, and on which credit its money.
_Open = tuple[tuple[Charge, ...], Credits]
_NONE = Level(0, 0)


class NotAsked(StoreUnavailable):
    """The store is known to be away: it was not asked, so there is nothing to give back."""


class Admission:
    """One per data process. ``processes``: how many share the store, as last known. ``reached``:
    whether it ever answered; a process that began while it was away spends nobody's credit, since it
    does not know what the one before it spent.
    """

    def __init__(
        self,
        store: QuotaStore,
        balances: Balances,
        leases: Leases,
        *,
        processes: Callable[[], int],
        unix_ms: Callable[[], int],
        reached: Callable[[], bool],
    ) -> None:
        self._store = store
        self._balances = balances
        self._leases = leases
        self._processes = processes
        self._unix_ms = unix_ms
        self._reached = reached
        self._shares = Shares(processes())
        self._knocking: asyncio.Task[None] | None = None
        self._open: dict[_Key, _Open] = {}

    @property
    def away(self) -> bool:
        """Whether requests are decided here, without the store."""
        return self._knocking is not None

    @property
    def on_credit_micro(self) -> int:
        """Spent without the store, and not yet seen by it."""
        return max(self._shares.credit.spent.values(), default=0)

    async def draw(self, request_id: str, charges: tuple[Charge, ...]) -> Draw | Verdict:
        """Draw on what all tenants share, before the tenant's own step; or the refusal that binds, and
        nothing is held. Raises ``NotAsked`` where a limit may not be shared while the store is away.
        """
        draw = self._leases.draw(charges, away=self.away)
        if not draw.lacking:
            return draw
        if not self.away:
            try:
                refused = await self._leases.fetch(draw)
            except StoreUnavailable:
                self._lose()
            except BaseException:
                self._leases.put_back(draw)
                raise
            else:
                if refused is not None:
                    self._leases.put_back(draw)
                    return refused
        if not draw.lacking:
            return draw
        return self._draw_here(request_id, draw)

    def put_back(self, request_id: str, draw: Draw) -> None:
        """The tenant's step refused, or nothing came of it."""
        for tag, charges in _by_tag(draw):
            if self._open.pop((tag, request_id), None) is not None:
                self._shares.undo(charges, self._unix_ms())
        draw.shared = ()
        self._leases.put_back(draw)

    def settle(self, request_id: str, draw: Draw, charged: tuple[Charge, ...]) -> None:
        """The request has ended, and came to ``charged``, in the order of what it drew."""
        for tag, charges in _by_tag(draw):
            self._open.pop((tag, request_id), None)
            self._shares.give_back(charges)
            used = tuple(
                [charged[index] for index in draw.shared if charged[index].limit.scope == tag]
            )
            self._store.settle(
                Settlement(tag, settled_as(request_id, LOCAL_EPOCH), LOCAL_EPOCH, used, {})
            )
        draw.shared = ()
        self._leases.settle(draw, charged)

    async def reserve(
        self, principal: Principal, request_id: str, charges: tuple[Charge, ...], ttl_s: int
    ) -> Verdict:
        """As ``QuotaStore.reserve``; an admission without the store has the epoch "".

        Raises ``StoreUnavailable`` where a limit may not be shared (``NotAsked``: and the store holds
        nothing of it), and ``StoreAway``.
        """
        if self._knocking is not None:
            try:
                return self._reserve_here(principal, request_id, charges)
            except StoreUnavailable as closed:
                raise NotAsked(str(closed)) from None
        tag = principal.tag
        try:
            verdict = await self._store.reserve(tag, request_id, charges, ttl_s)
            if verdict.reason == "unbuilt" and await self._balances.build(
                tag, principal.tenant.id, charges, verdict.epoch
            ):
                verdict = await self._store.reserve(tag, request_id, charges, ttl_s)
        except StoreUnavailable:
            self._lose()
            return self._reserve_here(principal, request_id, charges)
        if self._shares.credit.spent and verdict.admitted and money_of(charges):
            self._shares.credit.renew(principal.credits)
        return verdict

    async def claim(self, principal: Principal, name: str, request_id: str, ttl_s: int) -> str:
        """As ``QuotaStore.claim``; raises ``StoreUnavailable``: two requests are not told apart then."""
        if self._knocking is not None:
            raise StoreUnavailable("the store is away")
        return await self._store.claim(principal.tag, name, request_id, ttl_s)

    def unclaim(self, principal: Principal, name: str, request_id: str) -> None:
        self._store.unclaim(principal.tag, name, request_id)

    def ended(self, principal: Principal, request_id: str, charged: tuple[Charge, ...]) -> None:
        """Its own settle says what it used: ``charged``, () where nothing came of it."""
        known = self._open.pop((principal.tag, request_id), None)
        if known is not None:
            charges, of = known
            self._shares.give_back(charges)
            self._shares.credit.move(of, money_of(charged) - money_of(charges))

    async def close(self) -> None:
        if self._knocking is not None:
            self._knocking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._knocking

    def _lose(self) -> None:
        """The store did not answer: from here on nobody asks it but the one who knocks."""
        if self._knocking is None:
            _log.warning("the store is away; limits are shared where they may be")
            self._shares.clear()
            self._knocking = asyncio.create_task(self._knock(), name="store knock")

    def _reserve_here(
        self, principal: Principal, request_id: str, charges: tuple[Charge, ...]
    ) -> Verdict:
        self._shares.processes = self._processes()
        of = principal.credits if self._reached() else ()
        verdict = self._shares.take(charges, self._unix_ms(), of)
        if verdict.admitted:
            self._open[principal.tag, request_id] = (charges, of)
        return verdict

    def _draw_here(self, request_id: str, draw: Draw) -> Draw | Verdict:
        """What the leases lack comes from this process's share, where it may."""
        indexes = tuple(self._leases.undo(draw))
        self._leases.count("shared")
        here = tuple([draw.charges[index] for index in indexes])
        self._shares.processes = self._processes()
        try:
            verdict = self._shares.take(here, self._unix_ms())
        except StoreUnavailable as closed:
            self._leases.put_back(draw)
            raise NotAsked(str(closed)) from None
        if not verdict.admitted:
            self._leases.put_back(draw)
            binding = indexes[verdict.binding]
            levels = [_NONE] * len(draw.charges)
            levels[binding] = verdict.levels[verdict.binding]
            return Verdict(
                admitted=False,
                levels=tuple(levels),
                epoch=LOCAL_EPOCH,
                binding=binding,
                retry_after_ms=verdict.retry_after_ms,
                reason=verdict.reason,
            )
        draw.shared = indexes
        for tag, charges in _by_tag(draw):
            self._open[tag, request_id] = (charges, ())
        return draw

    async def _knock(self) -> None:
        """Until the store answers and has been charged all that was admitted without it."""
        charged: set[_Key] = set()
        regained = False
        while True:
            await asyncio.sleep(0 if charged else KNOCK_S)
            try:
                await self._store.ping()
                if not regained:
                    await self._leases.regain()
            except StoreUnavailable:
                charged.clear()
                regained = False
                continue
            regained = True
            for key in self._open.keys() - charged:
                self._charge(key)
                charged.add(key)
            if await self._store.flush(REPAY_S) and self._open.keys() <= charged:
                break
        self._open.clear()
        self._knocking = None
        _log.warning("the store is back, and has been charged what was admitted without it")

    def _charge(self, key: _Key) -> None:
        """What a request that is still open reserved here; its end finds it settled."""
        tag, request_id = key
        reserved = tuple(
            Charge(each.limit, 0, each.periods) if each.limit.algorithm == "concurrency" else each
            for each in self._open[key][0]
        )
        debt = settled_as(request_id, LOCAL_EPOCH)
        self._store.settle(Settlement(tag, debt, LOCAL_EPOCH, reserved, {}))


def _by_tag(draw: Draw) -> list[tuple[str, tuple[Charge, ...]]]:
    """What was admitted without the store, by the tag it is owed to."""
    found: dict[str, tuple[Charge, ...]] = {}
    for index in draw.shared:
        charge = draw.charges[index]
        tag = tag_of(charge.limit)
        found[tag] = (*found.get(tag, ()), charge)
    return list(found.items())


class Shares:
    """The part of each limit that one process may admit. Pure: times are arguments (Unix ms)."""

    def __init__(self, processes: int) -> None:
        self.processes = max(1, processes)
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._holds: dict[tuple[str, str], int] = {}
        self.credit = OfflineCredit()

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
