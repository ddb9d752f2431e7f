"""Servers of the store that are away, what is admitted meanwhile, and what is owed to them for it.

A server that does not answer is not asked again by requests: one task knocks until it answers. A
store of many servers loses one at a time, and the tenants of the others go on as ever. Meanwhile a
limit whose policy says so is shared (``gateway.local_shares``); everything else is refused. What was
admitted here is charged to the store before the tenant's levels are asked again, wherever they are by
then: ended requests by their true counts, open ones by what they reserved.

Not here: levels (``quotas.store``), the order in which an admission asks (``gateway.admission``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from gateway.leases import Leases
from gateway.local_shares import LOCAL_EPOCH, Shares
from quotas.charges import settled_as
from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Verdict
from quotas.offline import Credits, OfflineCredit
from quotas.ports import QuotaStore, Settlement

#: Between two knocks at a server that is away.
KNOCK_S = 0.25
#: What is owed after an outage is acknowledged within this, or the server counts as away still.
REPAY_S = 5.0
_log = logging.getLogger("gateway.outages")
#: Tag and request: a request that drew from shared limits is open under their tags as well.
_Key = tuple[str, str]
#: What was admitted without the store, on which credit its money, and of which shares.
_Open = tuple[tuple[Charge, ...], Credits, Shares]


class Outage:
    """One server's. It ends for all tags that were decided here since, together."""

    __slots__ = ("part", "shares", "task")

    def __init__(self, part: str, shares: Shares) -> None:
        self.part = part
        self.shares = shares
        self.task: asyncio.Task[None] | None = None


class Outages:
    """One per data process. ``processes``: how many share the store, as last known."""

    def __init__(
        self,
        store: QuotaStore,
        leases: Leases,
        *,
        processes: Callable[[], int],
        unix_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._leases = leases
        self._processes = processes
        self._unix_ms = unix_ms
        self.credit = OfflineCredit()
        self.parts: dict[str, Outage] = {}
        self._of_tag: dict[
            str, Outage
        ] = {}  # those decided here since: owed, wherever they are now
        self._shares: dict[str, Shares] = {}  # holds outlive an outage
        self._open: dict[_Key, _Open] = {}
        self._paid: dict[_Key, _Open] = {}  # charged since, still running: their holds count on

    def away(self, tag: str) -> bool:
        """Whether requests of the tag are decided here, without the store."""
        if not self.parts:
            return False
        return tag in self._of_tag or self._store.part(tag) in self.parts

    def lose(self, tag: str) -> None:
        """Its server did not answer: from here on nobody asks it but the one who knocks."""
        part = self._store.part(tag)
        outage = self.parts.get(part)
        if outage is None:
            of = f" {part}" if part else ""
            _log.warning("the store%s is away; limits are shared where they may be", of)
            shares = self._shares.get(part)
            if shares is None:
                shares = self._shares[part] = Shares(self._processes(), self.credit)
            shares.clear()
            outage = self.parts[part] = Outage(part, shares)
            outage.task = asyncio.create_task(self._knock(outage), name="store knock")
        self._of_tag.setdefault(tag, outage)

    def admit(
        self, tag: str, request_id: str, charges: tuple[Charge, ...], of: Credits = ()
    ) -> Verdict:
        """As ``Shares.take``; money on the credits given, where the server ever answered this process:
        else it does not know what the one before it spent.
        """
        outage = self._of_tag.get(tag)
        if outage is None:
            outage = self._of_tag[tag] = self.parts[self._store.part(tag)]
        shares = outage.shares
        shares.processes = self._processes()
        if of and not self._store.reached(tag):
            of = ()
        verdict = shares.take(charges, self._unix_ms(), of)
        if verdict.admitted:
            self._open[tag, request_id] = (charges, of, shares)
        return verdict

    def ended(self, tag: str, request_id: str) -> tuple[tuple[Charge, ...], Credits]:
        """Of a request that was admitted here: what it reserved, its holds given back; else nothing."""
        key = (tag, request_id)
        known = self._open.pop(key, None)
        running = known or self._paid.pop(key, None)
        if running is not None:
            charges, _, shares = running
            shares.give_back(charges)
        return known[:2] if known is not None else ((), ())

    def undo(self, tag: str, request_id: str) -> None:
        """Nothing came of it: all of it is there again."""
        known = self._open.pop((tag, request_id), None)
        if known is None:
            self.ended(tag, request_id)
        else:
            charges, _, shares = known
            shares.undo(charges, self._unix_ms())

    async def close(self) -> None:
        for outage in self.parts.values():
            if outage.task is not None:
                outage.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await outage.task

    async def _knock(self, outage: Outage) -> None:
        """Until the store answers and has been charged all that was admitted without it."""
        charged: set[_Key] = set()
        regained: set[str] = set()
        while True:
            await asyncio.sleep(0 if charged else KNOCK_S)
            tags = {tag for tag, of in self._of_tag.items() if of is outage}
            parts = {self._store.part(tag) for tag in tags}  # where they are now
            try:
                for part in parts:
                    await self._store.ping(part)
                if parts - regained:
                    await self._leases.regain(lambda tag: self._store.part(tag) in parts)  # noqa: B023
            except StoreUnavailable:
                charged.clear()
                regained.clear()
                continue
            regained |= parts
            for key in [key for key in self._open if key[0] in tags and key not in charged]:
                self._charge(key)
                charged.add(key)
            acknowledged = [await self._store.flush(REPAY_S, part) for part in parts]
            if all(acknowledged) and self._is_over(outage, tags, charged):
                break
        _log.warning("the store is back, and has been charged what was admitted without it")

    def _is_over(self, outage: Outage, tags: set[str], charged: set[_Key]) -> bool:
        """Whether nothing more is owed; then the outage is over."""
        owed = [tag for tag, of in self._of_tag.items() if of is outage]
        keys = [key for key in self._open if key[0] in tags]
        if len(owed) > len(tags) or not charged.issuperset(keys):
            return False
        for tag in owed:
            del self._of_tag[tag]
        for key in keys:
            self._paid[key] = self._open.pop(key)
        del self.parts[outage.part]
        return True

    def _charge(self, key: _Key) -> None:
        """What a request that is still open reserved here; its end finds it settled."""
        tag, request_id = key
        reserved = tuple(
            Charge(each.limit, 0, each.periods) if each.limit.algorithm == "concurrency" else each
            for each in self._open[key][0]
        )
        debt = settled_as(request_id, LOCAL_EPOCH)
        self._store.settle(Settlement(tag, debt, LOCAL_EPOCH, reserved, {}))
