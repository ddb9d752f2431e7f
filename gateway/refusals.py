"""What limits have refused: remembered so that a storm costs the store nothing, and to be explained.

A limit that has no room now is refused from here until it has, so that a client that does not wait
does not reach the store. It is asked again every second nevertheless, and as soon as a request
charged to it has ended here: others may have given back, or paid in. The idea of a local cache of
limits that are over is Envoy's (envoyproxy/ratelimit). Pure: times are arguments.
"""

from collections import OrderedDict, deque

import msgspec

from quotas.limits import Charge, Limit, Reason, Verdict

REMEMBERED_MAX = 10_000
#: How long one refusal of the store's stands for the next requests.
ASK_AGAIN_S = 1.0
#: Holds go free at any moment.
ASK_AGAIN_CONCURRENCY_S = 0.1
#: A credit is to count within a second.
ASK_AGAIN_BALANCE_S = 0.25
ASK_AGAIN_OF = {
    "concurrency": ASK_AGAIN_CONCURRENCY_S,
    "balance_held": ASK_AGAIN_CONCURRENCY_S,
    "balance_spent": ASK_AGAIN_BALANCE_S,
}
RECENT_MAX = 100
KEYS_MAX = 10_000
#: Refusals that say nothing of a limit's level.
_OF_THE_STORE = frozenset(("unbuilt", "skewed", "never"))


class Refused(msgspec.Struct, frozen=True):
    """A limit that has no room: what it said, and of how much. ``remaining`` may be negative."""

    limit: Limit
    requested: int
    remaining: int
    reset_ms: int
    retry_after_ms: int
    reason: Reason


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One refusal of a key, as it is explained. ``at_ms``: Unix ms."""

    at_ms: int
    model: str
    scope: str
    dimension: str
    window: str
    limit: int
    used: int
    requested: int
    retry_after_ms: int
    reason: str


class Refusals:
    """One per data process. ``now_s``: monotonic seconds."""

    def __init__(self) -> None:
        self._over: OrderedDict[int, tuple[Refused, float, float]] = OrderedDict()
        self._recent: OrderedDict[int, deque[Refusal]] = OrderedDict()

    def recall(self, charges: tuple[Charge, ...], now_s: float) -> Refused | None:
        """The refusal that stands for one of these charges, with what is left of its wait."""
        if not self._over:
            return None
        found: Refused | None = None
        for charge in charges:
            known = self._over.get(id(charge.limit))
            if known is None or charge.amount < known[0].requested:
                continue
            if charge.amount > charge.limit.capacity and charge.limit.algorithm != "balance":
                continue  # never, not later: the store says so
            refused, told_s, until_s = known
            if now_s >= until_s:
                del self._over[id(charge.limit)]
                continue
            waited_ms = int((now_s - told_s) * 1000)
            if found is None or refused.retry_after_ms - waited_ms > found.retry_after_ms:
                found = _later(refused, charge.amount, waited_ms)
        return found

    def remember(self, charges: tuple[Charge, ...], verdict: Verdict, now_s: float) -> Refused:
        """Take in what the store refused."""
        charge, level = charges[verdict.binding], verdict.levels[verdict.binding]
        refused = Refused(
            charge.limit,
            charge.amount,
            level.remaining,
            level.reset_ms,
            verdict.retry_after_ms,
            verdict.reason,
        )
        if verdict.reason not in _OF_THE_STORE:
            again_s = ASK_AGAIN_OF.get(verdict.reason, ASK_AGAIN_S)
            if verdict.retry_after_ms >= 0:
                again_s = min(again_s, verdict.retry_after_ms / 1000)
            # The limit is kept with it: an identity is only unique among the living.
            self._over[id(charge.limit)] = (refused, now_s, now_s + again_s)
            if len(self._over) > REMEMBERED_MAX:
                self._over.popitem(last=False)
        return refused

    def forget(self, charges: tuple[Charge, ...]) -> None:
        """A request charged to these has ended: there may be room again."""
        if self._over:
            for charge in charges:
                self._over.pop(id(charge.limit), None)

    def note(self, key_id: int, refusal: Refusal) -> None:
        """Keep it among the last of its key."""
        recent = self._recent.get(key_id)
        if recent is None:
            recent = self._recent[key_id] = deque(maxlen=RECENT_MAX)
            if len(self._recent) > KEYS_MAX:
                self._recent.popitem(last=False)
        recent.append(refusal)

    def recent(self, key_id: int) -> tuple[Refusal, ...]:
        """Newest last."""
        return tuple(self._recent.get(key_id, ()))


def used_of(limit: Limit, remaining: int) -> int:
    """Units gone of a limit's capacity, debt included."""
    return max(0, limit.capacity - remaining)


def _later(refused: Refused, requested: int, waited_ms: int) -> Refused:
    wait_ms = refused.retry_after_ms
    if wait_ms >= 0:
        more = requested - refused.requested
        if more and refused.limit.per_minute:
            # A larger request than the refused one waits for the units it asks for beyond it.
            wait_ms += -(-more * 60_000 // refused.limit.per_minute)
        wait_ms = max(1, wait_ms - waited_ms)
    return Refused(
        refused.limit,
        requested,
        refused.remaining,
        refused.reset_ms,
        wait_ms,
        refused.reason,
    )
