"""What a request would get, and why: every limit that applies, its level, the last refusals.

Asks the store without changing anything. Not here: who may ask (``gateway.routes`` for a key about
itself, the admin API over the link for an operator).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from gateway.contract.errors import StoreAway, TooManyReads
from gateway.leases import Held, Leases, tag_of
from gateway.refusals import Refusal, Refusals
from gateway.snapshot import Principal, Snapshot
from gateway.terms import Calendars, Terms, terms_of
from quotas.charges import Amounts
from quotas.errors import StoreUnavailable
from quotas.estimate import Plan
from quotas.limits import Charge, Gauge, Inspection, Level, Limit
from quotas.ports import QuotaStore

#: Of one key, questions about itself in flight.
LOOKS_PER_KEY_MAX = 4
#: Limits' windows as a name's last words: "tokens per minute".
_WINDOWS = {"lifetime": "in all", "now": "left"}
_MICRO = 1_000_000


class Asked(msgspec.Struct, frozen=True):
    """A request to be explained: prompt tokens, and the most it may answer."""

    input_tokens: int
    output_tokens: int


class Explainer:
    """One per data process."""

    def __init__(
        self,
        snapshot: Snapshot,
        store: QuotaStore,
        refusals: Refusals,
        leases: Leases,
        unix_ms: Callable[[], int],
    ) -> None:
        self._snapshot = snapshot
        self._store = store
        self._refusals = refusals
        self._leases = leases
        self._unix_ms = unix_ms
        self._calendars = Calendars()
        self._looking: Counter[int] = Counter()

    async def explain(self, key_id: int, model_id: int, asked: Asked) -> dict[str, object] | None:
        """For an operator; None where key or model are not known here. Raises ``StoreUnavailable``."""
        principal = self._snapshot.principal(key_id)
        model = self._snapshot.models.get(model_id)
        if principal is None or model is None:
            return None
        terms = terms_of(principal, model, self._calendars, self._snapshot.platform)
        tokens = asked.input_tokens + asked.output_tokens
        held = terms.hold_micro(Plan(0, 0, asked.output_tokens, None, asked.input_tokens))
        amounts = (1, asked.input_tokens, asked.output_tokens, tokens, 1, held)
        charges = terms.charges(amounts, self._unix_ms())
        found = await self._store.inspect(principal.tag, charges)
        shared = await self._shared(terms.shared_charges(amounts, self._unix_ms()))
        return {
            "store": self._store.name,
            "verdict": _verdict_of(charges, found, shared),
            "throughput": await self._throughput(terms, amounts),
            "limits": [
                *[
                    _limit(charge, seen.verdict.levels[0], seen.gauges[0], holders=True)
                    | {
                        "leases": [
                            {"process": self._leases.name, "unspent": held.unspent, "out": held.out}
                        ]
                    }
                    for charge, seen, held in shared
                ],
                *[
                    _limit(charge, level, gauge, holders=True)
                    for charge, level, gauge in _rows(charges, found)
                ],
            ],
            "offline_credit": [
                {"scope": name, "limit": _decimal(micro)}
                for name, micro in _credits(principal).items()
            ],
            "refusals": _refusals(self._refusals.recent(key_id)),
        }

    async def _shared(self, charges: tuple[Charge, ...]) -> list[tuple[Charge, Inspection, Held]]:
        """Limits that all tenants share: what the store says once this process's lease is spent."""
        found = []
        for charge in charges:
            held = self._leases.held(charge.limit)
            lacking = max(0, charge.amount - held.unspent)
            asked = Charge(charge.limit, lacking, charge.periods)
            found.append((charge, await self._store.inspect(tag_of(charge.limit), (asked,)), held))
        return found

    async def _throughput(self, terms: Terms, amounts: Amounts) -> dict[str, object] | None:
        """What the request would get of reserved throughput, which is asked first; None where the
        tenant has none of the model.
        """
        sold = terms.on_throughput(self._unix_ms())
        if sold is None:
            return None
        charges = sold.charges((*amounts[:-1], 0), self._unix_ms())
        found = await self._store.inspect(terms.principal.tag, charges)
        return {
            "overflow": "spill" if sold.spills else "reject",
            "verdict": _verdict(charges, found),
            "limits": [
                _limit(charge, level, gauge, holders=True)
                for charge, level, gauge in _rows(charges, found)
                if charge.limit.scope == charges[-1].limit.scope
            ],
        }

    async def look(self, principal: Principal) -> dict[str, object]:
        """A key about itself. Raises ``TooManyReads`` and ``StoreAway``."""
        key_id = principal.key.id
        if self._looking[key_id] >= LOOKS_PER_KEY_MAX:
            raise TooManyReads(LOOKS_PER_KEY_MAX)
        self._looking[key_id] += 1
        try:
            return await self._look(principal)
        except StoreUnavailable:
            raise StoreAway from None
        finally:
            self._looking[key_id] -= 1
            if not self._looking[key_id]:
                del self._looking[key_id]

    async def _look(self, principal: Principal) -> dict[str, object]:
        limits, of_models = list(principal.limits), {}
        for scope in (principal.tenant, principal.project, principal.key):
            for model_id, own in scope.model_limits.items():
                model = self._snapshot.models.get(model_id)
                if model is not None and _may_use(principal, model.name):
                    of_models.update(dict.fromkeys(map(id, own), model.name))
                    limits += own
        calendar = self._calendars.of(principal.tenant.time_zone)
        now_ms = self._unix_ms()
        for model_id, held in principal.tenant.throughput.items():
            model = self._snapshot.models.get(model_id)
            if model is not None and held.holds(now_ms) and _may_use(principal, model.name):
                of_models[id(held.limit)] = model.name
                limits.append(held.limit)
        charges = tuple(
            Charge(
                limit, 0, calendar.at(limit.window, now_ms) if limit.algorithm == "quota" else None
            )
            for limit in limits
        )
        found = await self._store.inspect(principal.tag, charges) if charges else None
        shared = await self._shared_by_all(principal, now_ms)
        key = principal.key
        expires_s = max((each.expires_s or 0 for each in key.secrets), default=0)
        return {
            "object": "key",
            "path": key.path,
            "models": None if key.models is None else list(key.models),
            "expires_at": expires_s or None,
            "limits": [
                *[
                    _limit(charge, seen.verdict.levels[0], seen.gauges[0]) | {"model": model}
                    for charge, model, seen in shared
                ],
                *[
                    _limit(charge, level, gauge) | {"model": of_models.get(id(charge.limit))}
                    for charge, level, gauge in _rows(charges, found)
                ],
            ],
            "refusals": _refusals(self._refusals.recent(key.id)),
        }

    async def _shared_by_all(
        self, principal: Principal, now_ms: int
    ) -> list[tuple[Charge, str | None, Inspection]]:
        """What all tenants share and this key is held to: of the platform, then of each model that it
        may use, its pool's included. Levels as the store has them: what processes hold unspent counts
        as used.
        """
        platform = self._snapshot.platform
        named: dict[int, tuple[Limit, str | None]] = {
            id(limit): (limit, None) for limit in platform.limits
        }
        for model in self._snapshot.models.values():
            if _may_use(principal, model.name):
                for limit in platform.limits_for(model):
                    named.setdefault(id(limit), (limit, model.name))
        calendar = self._calendars.of("UTC")
        charges = [
            Charge(
                limit, 0, calendar.at(limit.window, now_ms) if limit.algorithm == "quota" else None
            )
            for limit, _ in named.values()
        ]
        seen = await asyncio.gather(
            *[self._store.inspect(tag_of(charge.limit), (charge,)) for charge in charges]
        )
        return [
            (charge, model, each)
            for charge, (_, model), each in zip(charges, named.values(), seen, strict=True)
        ]


def _credits(principal: Principal) -> dict[str, int]:
    """Whose money may be spent while the store is away, and how much."""
    tenant, project = principal.tenant, principal.project
    named = (
        (f"tenant {tenant.name}", tenant.offline_credit_micro),
        (f"project {tenant.name}/{project.name}", project.offline_credit_micro),
    )
    return {name: micro for name, micro in named if micro is not None}


def _may_use(principal: Principal, model: str) -> bool:
    return principal.key.models is None or model in principal.key.models


def _rows(
    charges: tuple[Charge, ...], found: Inspection | None
) -> Iterable[tuple[Charge, Level, Gauge]]:
    return zip(charges, found.verdict.levels, found.gauges, strict=True) if found else ()


def name_of(limit: Limit) -> str:
    """As people say it: "tokens per minute", "concurrent requests", "money in all"."""
    if limit.dimension == "concurrency":
        return "concurrent requests"
    last = _WINDOWS.get(limit.window, f"per {limit.window}")
    return f"{limit.dimension.replace('_', ' ')} {last}".strip()


def _verdict_of(
    charges: tuple[Charge, ...],
    found: Inspection,
    shared: list[tuple[Charge, Inspection, Held]],
) -> dict[str, object]:
    """What all tenants share is asked first."""
    for charge, seen, _ in shared:
        if not seen.verdict.admitted:
            return _verdict((charge,), seen)
    return _verdict(charges, found)


def _verdict(charges: tuple[Charge, ...], found: Inspection) -> dict[str, object]:
    verdict = found.verdict
    if verdict.admitted:
        return {"admitted": True}
    limit = charges[verdict.binding].limit
    return {
        "admitted": False,
        "reason": verdict.reason,
        "binding": f"{limit.scope_name}: {name_of(limit)}",
        "retry_after_ms": None if verdict.retry_after_ms < 0 else verdict.retry_after_ms,
    }


def _limit(
    charge: Charge, level: Level, gauge: Gauge, *, holders: bool = False
) -> dict[str, object]:
    limit = charge.limit
    money = limit.dimension == "money"

    def amount(units: int) -> object:
        return _decimal(units) if money else units

    said: dict[str, object] = {
        "scope": limit.scope_name,
        "name": name_of(limit),
        "limit": amount(limit.per_minute or limit.capacity),
        "used": amount(gauge.used),
        "held": amount(gauge.held),
        "remaining": amount(level.remaining),
        "reset_ms": level.reset_ms,
        "enforced": not limit.shadow,
        "version": limit.version,
    }
    if limit.algorithm == "bucket" and limit.capacity != limit.per_minute:
        said["burst"] = limit.capacity
    if gauge.balance is not None:
        said["balance"] = amount(gauge.balance)
    if holders:
        said["requested"] = amount(charge.amount)
        said["outage"] = limit.outage
        said["holders"] = [
            {"process": each.owner, "holds": each.holds, "lease_ms": each.lease_ms}
            for each in gauge.holders
        ]
    return said


def _refusals(recent: tuple[Refusal, ...]) -> list[dict[str, object]]:
    """Newest first."""
    return [_refusal(each) for each in reversed(recent)]


def _refusal(each: Refusal) -> dict[str, object]:
    said = msgspec.structs.asdict(each)
    if each.dimension == "money":
        for field in ("limit", "used", "requested"):
            said[field] = _decimal(said[field])
    return said


def _decimal(micro: int) -> str:
    """Micro-units as the shortest exact decimal with two places at least."""
    whole, rest = divmod(abs(micro), _MICRO)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{digits}"
