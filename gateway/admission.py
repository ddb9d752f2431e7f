"""Asking the store for a reservation, and deciding here while it does not answer.

What all tenants share comes first, from this process's leases; then the tenant's own step. A server
of the store that is away is not asked (``gateway.outages``). Money that the store does not know is
counted anew first. Not here: levels (``quotas.store``), sums of money (``gateway.balances``).
"""

from collections.abc import Callable

from gateway.balances import Balances
from gateway.leases import Leases, tag_of
from gateway.local_shares import LOCAL_EPOCH
from gateway.outages import Outages
from gateway.snapshot import Principal
from quotas.charges import settled_as
from quotas.errors import StoreUnavailable
from quotas.leases import Draw
from quotas.limits import Charge, Level, Verdict
from quotas.offline import money_of
from quotas.ports import QuotaStore, Settlement

_NONE = Level(0, 0)


class NotAsked(StoreUnavailable):
    """The store is known to be away: it was not asked, so there is nothing to give back."""


class Admission:
    """One per data process. ``processes``: how many share the store, as last known."""

    def __init__(
        self,
        store: QuotaStore,
        balances: Balances,
        leases: Leases,
        *,
        processes: Callable[[], int],
        unix_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._balances = balances
        self._leases = leases
        self._outages = Outages(store, leases, processes=processes, unix_ms=unix_ms)

    @property
    def away(self) -> bool:
        """Whether requests of any tenant are decided here, without the store."""
        return bool(self._outages.parts)

    @property
    def on_credit_micro(self) -> int:
        """Spent without the store, and not yet seen by it."""
        return max(self._outages.credit.spent.values(), default=0)

    async def draw(self, request_id: str, charges: tuple[Charge, ...]) -> Draw | Verdict:
        """Draw on what all tenants share, before the tenant's own step; or the refusal that binds, and
        nothing is held. Raises ``NotAsked`` where a limit may not be shared while the store is away.
        """
        away = self._outages.away
        draw = self._leases.draw(charges, away)
        if not draw.lacking:
            return draw
        here = [each for each in draw.lacking if away(tag_of(charges[each[0]].limit))]
        draw.lacking = [each for each in draw.lacking if each not in here]
        refused = None
        if draw.lacking:
            try:
                refused = await self._leases.fetch(draw)
            except StoreUnavailable:
                for index, _ in draw.lacking:
                    self._outages.lose(tag_of(charges[index].limit))
            except BaseException:
                draw.lacking += here
                self._leases.put_back(draw)
                raise
        draw.lacking += here
        if refused is not None:
            self._leases.put_back(draw)
            return refused
        return self._draw_here(request_id, draw) if draw.lacking else draw

    def put_back(self, request_id: str, draw: Draw) -> None:
        """The tenant's step refused, or nothing came of it."""
        for tag in _by_tag(draw, draw.shared):
            self._outages.undo(tag, request_id)
        draw.shared = ()
        self._leases.put_back(draw)

    def settle(self, request_id: str, draw: Draw, charged: tuple[Charge, ...]) -> None:
        """The request has ended, and came to ``charged``, in the order of what it drew."""
        for tag, indexes in _by_tag(draw, draw.shared).items():
            self._outages.ended(tag, request_id)
            used = tuple([charged[index] for index in indexes])
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
        tag, outages = principal.tag, self._outages
        if outages.away(tag):
            try:
                return outages.admit(tag, request_id, charges, principal.credits)
            except StoreUnavailable as closed:
                raise NotAsked(str(closed)) from None
        try:
            verdict = await self._store.reserve(tag, request_id, charges, ttl_s)
            if verdict.reason == "unbuilt" and await self._balances.build(
                tag, principal.tenant.id, charges, verdict.epoch
            ):
                verdict = await self._store.reserve(tag, request_id, charges, ttl_s)
        except StoreUnavailable:
            outages.lose(tag)
            return outages.admit(tag, request_id, charges, principal.credits)
        credit = outages.credit
        if credit.spent and verdict.admitted and money_of(charges):
            credit.renew(principal.credits)
        return verdict

    async def claim(self, principal: Principal, name: str, request_id: str, ttl_s: int) -> str:
        """As ``QuotaStore.claim``; raises ``StoreUnavailable``: two requests are not told apart then."""
        if self._outages.away(principal.tag):
            raise StoreUnavailable("the store is away")
        return await self._store.claim(principal.tag, name, request_id, ttl_s)

    def unclaim(self, principal: Principal, name: str, request_id: str) -> None:
        self._store.unclaim(principal.tag, name, request_id)

    def ended(self, principal: Principal, request_id: str, charged: tuple[Charge, ...]) -> None:
        """Its own settle says what it used: ``charged``, () where nothing came of it."""
        reserved, of = self._outages.ended(principal.tag, request_id)
        if of:
            self._outages.credit.move(of, money_of(charged) - money_of(reserved))

    async def close(self) -> None:
        await self._outages.close()

    def _draw_here(self, request_id: str, draw: Draw) -> Draw | Verdict:
        """What the leases lack comes from this process's shares, where it may: all of it or none."""
        indexes = tuple(self._leases.undo(draw))
        self._leases.count("shared")
        refused: Verdict | None = None
        closed: StoreUnavailable | None = None
        for tag, of_tag in _by_tag(draw, indexes).items():
            try:
                verdict = self._outages.admit(
                    tag, request_id, tuple([draw.charges[index] for index in of_tag])
                )
            except StoreUnavailable as error:
                closed = error
                continue
            if not verdict.admitted and (
                refused is None or verdict.retry_after_ms > refused.retry_after_ms
            ):
                refused = _as_drawn(draw, of_tag, verdict)
        if closed is None and refused is None:
            draw.shared = indexes
            return draw
        for tag in _by_tag(draw, indexes):
            self._outages.undo(tag, request_id)
        self._leases.put_back(draw)
        if closed is not None:
            raise NotAsked(str(closed)) from None
        assert refused is not None
        return refused


def _by_tag(draw: Draw, indexes: tuple[int, ...]) -> dict[str, list[int]]:
    """Charges by where they are charged."""
    found: dict[str, list[int]] = {}
    for index in indexes:
        found.setdefault(tag_of(draw.charges[index].limit), []).append(index)
    return found


def _as_drawn(draw: Draw, indexes: list[int], verdict: Verdict) -> Verdict:
    """A refusal of some charges, as one of all that were drawn."""
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
