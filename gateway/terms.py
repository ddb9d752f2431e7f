"""What one principal's requests for one model are held to: every limit, ready to be charged.

Made once for a principal and a model, and remembered by the principal until its documents or the
model's change; a request then only fills in amounts. Pure: the hash of an end user and the time are
arguments. Not here: what a request reserves (``quotas.estimate``), the store.
"""

from collections.abc import Sequence
from datetime import UTC, tzinfo
from typing import NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from gateway.contract.errors import RequestTooLarge
from gateway.contract.ratelimits import Family, families_of
from gateway.snapshot import ModelDoc, PlatformDoc, Principal
from gateway.telemetry.counters import labels_of
from quotas.calendar import Periods, periods_at, stale_ms
from quotas.charges import DIMENSIONS, Amounts, Layout
from quotas.estimate import Plan
from quotas.limits import Charge, Limit
from quotas.money import MILLION, micro
from quotas.pricing import DEFAULT_TIER
from quotas.pricing import ceiling as price_ceiling

TOKENS = ("tokens", "input_tokens", "output_tokens")
_KINDS = {
    "t": "tenant",
    "p": "project",
    "k": "key",
    "A": "platform",
    "G": "pool",
    "M": "model",
}
NANO_PER_MICRO = 1000
#: End users remembered by the terms of one principal and model; beyond, all are forgotten.
USERS_MAX = 1_000


class Calendar:
    """A time zone's periods of now. Computed when they are asked for the first time in a period."""

    __slots__ = ("_kept", "_zone")

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._kept: dict[str, tuple[int, int, Periods]] = {}

    def at(self, window: str, unix_ms: int) -> Periods:
        """Good while the process's clock stays within them; a step backwards asks again."""
        kept = self._kept.get(window)
        if kept is not None and kept[0] <= unix_ms < kept[1]:
            return kept[2]
        found = periods_at(window, unix_ms, self._zone)
        self._kept[window] = (unix_ms, stale_ms(found), found)
        return found


class Calendars:
    """One calendar a time zone, by its name."""

    def __init__(self) -> None:
        self._known: dict[str, Calendar] = {}

    def of(self, time_zone: str) -> Calendar:
        """A zone that this host does not know (it was known where it was set) is UTC."""
        known = self._known.get(time_zone)
        if known is None:
            try:
                zone: tzinfo = ZoneInfo(time_zone)
            except (ValueError, OSError, ZoneInfoNotFoundError):
                zone = UTC
            known = self._known[time_zone] = Calendar(zone)
        return known


class Terms:
    """See the module. ``limits`` in the order they are charged: the first to bind names itself.
    ``shared``: those that all tenants share, drawn from leases before the others.

    ``tightest_*``: the least that an enforced limit of tokens, of output and of money can ever grant
    at once, None where there is none. ``spends``: money is limited here and enforced; ``price`` is the
    model's where it is in the currency that is limited. ``labels``: of each limit, for counting.
    ``layout``: where each limit finds its amount. ``version``: the price of its ``tier``, in whatever currency. ``reserved``: these are of throughput that the tenant has reserved; ``spills``: a request that they
    refuse is admitted as everybody's is. ``slot_ids``: the rows as a slot of the board names them, kept
    here by who writes there.
    """

    __slots__ = (
        "_calendar",
        "_ceiling",
        "_on_throughput",
        "_shared_at",
        "_sold",
        "_users",
        "_utc",
        "currency",
        "families",
        "has_users",
        "labels",
        "layout",
        "limits",
        "model",
        "price",
        "principal",
        "reserved",
        "shared",
        "slot_ids",
        "spends",
        "spills",
        "tier",
        "tightest_money",
        "tightest_output",
        "tightest_tokens",
        "version",
    )

    def __init__(
        self,
        principal: Principal,
        model: ModelDoc,
        calendar: Calendar,
        limits: tuple[Limit, ...],
        shared: tuple[Limit, ...] = (),
        utc: Calendar | None = None,
        tier: str = DEFAULT_TIER,
    ) -> None:
        self.principal = principal
        self.model = model
        self.limits = limits
        self.families: tuple[Family, ...] = families_of(limits)
        self.spends = any(limit.dimension == "money" and not limit.shadow for limit in limits)
        self.currency = principal.tenant.currency
        self.tier = tier
        self.version = price = principal.price_of(model, tier)
        priced = price is not None and price.currency == self.currency
        self.price = price if priced else None
        self.labels = tuple([labels_of(scope_of(limit), limit.dimension) for limit in limits])
        self.has_users = bool(principal.user_limits())
        self._ceiling = None if self.price is None else price_ceiling(self.price)
        self.tightest_tokens = _tightest(limits + shared, ("tokens",))
        self.tightest_output = _tightest(limits + shared, ("output_tokens",))
        self.tightest_money = _tightest(limits, ("money",))
        self._calendar = calendar
        self.layout = Layout(limits)
        self._users: dict[str, Terms] = {}
        self._sold = None if tier != DEFAULT_TIER else principal.tenant.throughput.get(model.id)
        self._on_throughput: Terms | None = None
        self.reserved = self.spills = False
        self.shared = shared
        self.slot_ids = b""
        self._shared_at = tuple([DIMENSIONS.index(limit.dimension) for limit in shared])
        self._utc = utc or Calendar(UTC)

    def shared_charges(self, amounts: Amounts, unix_ms: int) -> tuple[Charge, ...]:
        """One charge for each of ``shared``; their periods are UTC's."""
        at = self._utc.at
        return tuple(
            [
                Charge(
                    limit,
                    amounts[index],
                    at(limit.window, unix_ms) if limit.algorithm == "quota" else None,
                )
                for limit, index in zip(self.shared, self._shared_at, strict=True)
            ]
        )

    def charges(self, amounts: Amounts, unix_ms: int) -> tuple[Charge, ...]:
        """One charge a limit; ``amounts`` in the order of ``DIMENSIONS``."""
        layout = self.layout
        own = layout.amounts(amounts)
        if not layout.has_quotas:
            return tuple(map(Charge, self.limits, own))
        at = self._calendar.at
        periods = [
            at(limit.window, unix_ms) if limit.algorithm == "quota" else None
            for limit in self.limits
        ]
        return tuple(map(Charge, self.limits, own, periods))

    def hold_micro(self, intent: Plan) -> int:
        """Money to hold for a request, in micro-units: what it may cost at most; 0 where nothing
        limits money.
        """
        if self._ceiling is None or intent.prompt_ceiling is None:
            return 0
        return micro(self._ceiling.cost(intent.prompt_ceiling, intent.output))

    def affordable_output(self, prompt_ceiling: int | None, bound: int | None) -> int | None:
        """Output tokens that the tightest budget can ever grant beside the prompt, or ``bound`` where
        that is less.
        """
        limit, dearest = self.tightest_money, self._ceiling
        if limit is None or dearest is None or prompt_ceiling is None or not dearest.output:
            return bound
        left = limit.capacity * NANO_PER_MICRO - dearest.cost(prompt_ceiling, 0)
        tokens = left * MILLION // dearest.output
        return tokens if bound is None else min(tokens, bound)

    def check_fits(self, intent: Plan) -> None:
        """Raises ``RequestTooLarge`` for what the tightest limits can never grant."""
        limit = self.tightest_tokens
        if limit is not None and intent.reserve > limit.capacity:
            self._refuse(limit, intent.reserve)
        limit = self.tightest_output
        if limit is not None and intent.output > limit.capacity:
            self._refuse(limit, intent.output)
        limit = self.tightest_money
        if limit is not None and (money := self.hold_micro(intent)) > limit.capacity:
            self._refuse(limit, money)

    def _refuse(self, limit: Limit, amount: int) -> NoReturn:
        raise RequestTooLarge(
            limit.scope_name, limit.dimension, limit.capacity, amount, self.currency
        )

    def on_throughput(self, unix_ms: int) -> "Terms | None":
        """The terms of what the tenant has reserved of the model; None where it has nothing then.

        It is of the default tier alone. It was paid for: nothing of the tenant's that counts tokens or money holds it back, only its
        own bucket, limits of requests, and what its projects and keys were given.
        """
        held = self._sold
        if held is None or not held.holds(unix_ms):
            return None
        if self._on_throughput is None:
            kept = tuple(limit for limit in self.limits if _binds_reserved(limit))
            limits = (*kept, held.limit)
            made = Terms(self.principal, self.model, self._calendar, limits, tier=self.tier)
            made.reserved, made.spills = True, held.spills
            if held.spills:  # what never fits there may fit elsewhere
                made.tightest_tokens = _tightest(kept, ("tokens",))
            self._on_throughput = made
        return self._on_throughput

    def for_user(self, user: str) -> "Terms":
        """The same with the limits of one end user; ``user`` is a hash of what the caller said."""
        known = self._users.get(user)
        if known is None:
            templates = self.principal.user_limits()
            if not templates:
                return self
            if len(self._users) >= USERS_MAX:
                self._users.clear()
            own = [msgspec.structs.replace(each, scope=each.scope + user) for each in templates]
            limits = (*self.limits, *own)
            known = self._users[user] = Terms(
                self.principal,
                self.model,
                self._calendar,
                limits,
                self.shared,
                self._utc,
                self.tier,
            )
        return known


def terms_of(
    principal: Principal,
    model: ModelDoc,
    calendars: Calendars,
    platform: PlatformDoc,
    tier: str = DEFAULT_TIER,
) -> Terms:
    """Those of one tier. Made anew when the model's document is another one; a changed principal is another one too, and
    all are when the platform's document changes.
    """
    name = model.id if tier == DEFAULT_TIER else (model.id, tier)
    known: Terms | None = principal.terms.get(name)
    if known is None or known.model is not model:
        calendar = calendars.of(principal.tenant.time_zone)
        limits, shared = principal.limits_for(model.id), platform.limits_for(model)
        known = principal.terms[name] = Terms(
            principal, model, calendar, limits, shared, calendars.of("UTC"), tier
        )
    return known


def scope_of(limit: Limit) -> str:
    """What kind of scope a limit is of: one word for metrics."""
    scope = limit.scope
    if "u" in scope:
        return "end_user"
    if "r" in scope:
        return "throughput"
    kind = _KINDS.get(scope[:1], "other")
    return f"{kind}_model" if "m" in scope else kind


def _binds_reserved(limit: Limit) -> bool:
    if limit.dimension == "money":
        return False
    return not (
        limit.scope.startswith("t") and limit.dimension in TOKENS and "u" not in limit.scope
    )


def _tightest(limits: Sequence[Limit], dimensions: tuple[str, ...]) -> Limit | None:
    """A balance grants what was paid in: no configuration bounds it."""
    enforced = [
        limit
        for limit in limits
        if limit.dimension in dimensions and not limit.shadow and limit.algorithm != "balance"
    ]
    return min(enforced, key=lambda limit: limit.capacity, default=None)
