"""Has a tenant's money counted anew where the store does not know it: at first, or after a loss.

The store refuses money until it was told what SQL says (``unbuilt``). This process then asks control,
which has every process hold its open requests again, ships the journals, and answers with the sums;
they are handed to the store under the epoch they were asked for. Requests that wait for it wait once,
together. Not here: the sums (``gateway.control.balances``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from gateway.call import Call
from gateway.contract.errors import StoreAway
from gateway.link.client import LinkAway
from gateway.link.messages import BalancesAnswer, BalancesAsked, Rehold
from quotas.errors import ReservationRefused, StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.ports import QuotaStore

ANSWER_S = 2.0
#: What another process was told is in the store by then.
HANDED_OVER_S = 0.05
RESERVATION_GRACE_S = 86_400
Ask = Callable[[str, bytes, float], Awaitable[bytes]]


class Balances:
    """One per data process. ``running``: the requests of now."""

    def __init__(self, store: QuotaStore, ask: Ask, running: Callable[[], Iterable[Call]]) -> None:
        self._store = store
        self._ask = ask
        self._running = running
        self._building: dict[str, asyncio.Task[bool]] = {}

    async def build(
        self, tag: str, tenant_id: int, charges: tuple[Charge, ...], epoch: str
    ) -> bool:
        """True when the money of these charges, refused as ``unbuilt`` in that epoch, may be asked for
        again. Raises ``StoreAway``.
        """
        task = self._building.get(tag)
        if task is None:
            work = self._build(tag, tenant_id, charges, epoch)
            task = asyncio.create_task(work, name=f"balances of {tag}")
            self._building[tag] = task
            task.add_done_callback(lambda _: self._building.pop(tag, None))
        return await asyncio.shield(task)

    async def _build(
        self, tag: str, tenant_id: int, charges: tuple[Charge, ...], epoch: str
    ) -> bool:
        try:
            limits = await self._unbuilt(tag, charges)
            question = msgspec.msgpack.encode(BalancesAsked(tenant_id, tag, epoch, limits))
            body = await self._ask("balances", question, ANSWER_S)
            answer = msgspec.msgpack.decode(body, type=BalancesAnswer)
            if answer.counted_before:
                await asyncio.sleep(HANDED_OVER_S)
                return True
            return await self._store.seed(tag, epoch, answer.seeds, answer.counted)
        except (StoreUnavailable, LinkAway):
            raise StoreAway("balances cannot be counted right now") from None

    async def _unbuilt(self, tag: str, charges: tuple[Charge, ...]) -> tuple[Limit, ...]:
        """Those that the store does not know: a level that is known must not be counted again, or
        what was charged to it meanwhile would be undone.
        """
        money = [charge for charge in charges if charge.limit.dimension == "money"]
        if len(money) == 1:  # it is the one that was refused
            return (money[0].limit,)
        found = []
        for charge in money:
            asked = (Charge(charge.limit, 1, charge.periods),)
            if (await self._store.inspect(tag, asked)).verdict.reason == "unbuilt":
                found.append(charge.limit)
        return tuple(found)

    async def rehold(self, wanted: Rehold) -> None:
        """Hold this process's open requests of some tenants again, under the store's new epochs."""
        for call in list(self._running()):
            exchange = call.exchange
            tag = "" if exchange is None else exchange.principal.tag
            epoch = wanted.epochs.get(tag)
            if exchange is None or epoch is None or exchange.epoch == epoch:
                continue
            ttl_s = int(exchange.model.timeouts.stream_s) + RESERVATION_GRACE_S
            try:
                held = await self._store.rehold(
                    tag, call.request_id, epoch, exchange.charges, ttl_s
                )
            except (StoreUnavailable, ReservationRefused):
                continue  # its settle charges in full
            if held and exchange.outcome is None:
                exchange.epoch = epoch
