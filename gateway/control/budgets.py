"""How much of each budget is spent, and which thresholds that passes: 50, 80 and 100 %.

A tally is counted from the ledger once a period and moved by each record after that. Pure: records and
time are arguments. A budget of each end user is not known to the ledger, and not tallied. Not here:
enforcing budgets (``quotas.store``), SQL (``gateway.store.alerts``).
"""

from collections.abc import Iterator, Mapping

import msgspec

from gateway.events import Event
from gateway.snapshot import Snapshot, TenantDoc
from gateway.terms import Calendars
from quotas.calendar import covering
from quotas.limits import Limit
from quotas.money import decimal

THRESHOLDS = (50, 80, 100)
_NANO_PER_MICRO = 1_000
_COLUMNS = {"t": "tenant_id", "p": "project_id", "k": "key_id"}


class Period(msgspec.Struct, frozen=True):
    """Unix ms, from and to."""

    name: str
    begins_ms: int
    ends_ms: int


class Budget(msgspec.Struct, frozen=True):
    """One limit of money in one of its periods. ``column`` and ``row_id``: whose records it counts;
    ``model_id`` 0: of every model.
    """

    limit: Limit
    tenant: TenantDoc
    column: str
    row_id: int
    model_id: int
    period: Period

    @property
    def name(self) -> str:
        return f"{self.limit.scope}:{self.limit.window}:{self.period.name}"

    @property
    def asked(self) -> tuple[str, int, str, tuple[int, int]]:
        """What one question to the ledger can answer for many budgets."""
        between_ms = (self.period.begins_ms, self.period.ends_ms)
        return self.column, self.model_id, self.tenant.currency, between_ms

    def counts(self, record: "Record") -> bool:
        return (
            record.currency == self.tenant.currency
            and self.period.begins_ms <= record.started_ms < self.period.ends_ms
            and self.model_id in (0, record.model_id)
        )


class Record(msgspec.Struct, frozen=True):
    """What a budget asks of a record: the owners' ids by column, and what it cost."""

    owners: Mapping[str, int]
    model_id: int
    currency: str
    started_ms: int
    cost_nano: int


def budgets_in(snapshot: Snapshot, calendars: Calendars, now_ms: int) -> Iterator[Budget]:
    """Every budget of now, in its period of now."""
    for tenant_id, limit in _limits(snapshot):
        tenant = snapshot.tenants.get(tenant_id)
        column = _COLUMNS.get(limit.scope[:1])
        row_id, _, model_id = limit.scope[1:].partition("m")
        if tenant is None or column is None or not row_id.isdigit():
            continue
        if limit.dimension != "money" or limit.algorithm != "quota" or limit.capacity <= 0:
            continue
        periods = calendars.of(tenant.time_zone).at(limit.window, now_ms)
        period = Period(periods.this_id, periods.begins_ms, periods.ends_ms)
        if covering(periods, now_ms) == 1:
            period = Period(periods.next_id, periods.ends_ms, periods.next_ends_ms)
        yield Budget(limit, tenant, column, int(row_id), int(model_id or 0), period)


def _limits(snapshot: Snapshot) -> Iterator[tuple[int, Limit]]:
    """(tenant id, limit) of every tenant, project and key."""
    for tenant in snapshot.tenants.values():
        for limits in (tenant.limits, *tenant.model_limits.values()):
            yield from ((tenant.id, limit) for limit in limits)
    for project in snapshot.projects.values():
        for limits in (project.limits, *project.model_limits.values()):
            yield from ((project.tenant_id, limit) for limit in limits)
    for key in snapshot.keys.values():
        owner = snapshot.projects.get(key.project_id)
        for limits in (key.limits, *key.model_limits.values()) if owner else ():
            yield from ((owner.tenant_id if owner else 0, limit) for limit in limits)


class Tallies:
    """What was spent of each budget known, in nano-units."""

    def __init__(self) -> None:
        self.spent_nano: dict[str, int] = {}
        self._budgets: dict[str, Budget] = {}
        self._by_owner: dict[tuple[str, int], list[str]] = {}
        self._told: dict[str, set[int]] = {}

    def follow(self, budgets: Iterator[Budget]) -> list[Budget]:
        """The budgets of now; those that are new, whose tally must be ``set``."""
        self._budgets = {budget.name: budget for budget in budgets}
        for table in (self.spent_nano, self._told):
            for gone in table.keys() - self._budgets.keys():
                del table[gone]
        self._by_owner.clear()
        for name, budget in self._budgets.items():
            self._by_owner.setdefault((budget.column, budget.row_id), []).append(name)
        return [each for name, each in self._budgets.items() if name not in self.spent_nano]

    def add(self, record: Record) -> None:
        for owner in record.owners.items():
            for name in self._by_owner.get(owner, ()):
                if name in self.spent_nano and self._budgets[name].counts(record):
                    self.spent_nano[name] += record.cost_nano

    def passed(self, now_ms: int) -> Iterator[Event]:
        """An event for each threshold that is passed and was not told by this object before."""
        for name, spent in self.spent_nano.items():
            budget = self._budgets[name]
            told = self._told.setdefault(name, set())
            whole = budget.limit.capacity * _NANO_PER_MICRO
            for percent in THRESHOLDS:
                if spent * 100 >= whole * percent and percent not in told:
                    told.add(percent)
                    yield _event(budget, spent, percent, now_ms)


def _event(budget: Budget, spent_nano: int, percent: int, now_ms: int) -> Event:
    """Its id is the budget's period and the threshold: told once, whoever tells it."""
    return Event(
        id=f"budget_threshold:{budget.name}:{percent}",
        type="budget.threshold",
        subject=budget.tenant.name,
        time_ms=now_ms,
        data={
            "tenant": budget.tenant.name,
            "scope": budget.limit.scope_name,
            "window": budget.limit.window,
            "period": budget.period.name,
            "percent": percent,
            "budget": decimal(budget.limit.capacity * _NANO_PER_MICRO),
            "spent": decimal(spent_nano),
            "currency": budget.tenant.currency,
            "enforced": not budget.limit.shadow,
        },
    )
