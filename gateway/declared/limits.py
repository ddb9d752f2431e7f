"""The names of limits in files and commands: ``tokens_per_minute: 60000``, and what each one is.

A limit is a number, or an object where more than the number is said. Not here: rows
(``gateway.store.limits``), what a limit does (``quotas.limits``).
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from gateway.store.limits import OFFLINE, LimitName, LimitValue
from quotas.errors import MoneyError
from quotas.limits import MAX_EXACT
from quotas.money import parse_amount

#: Declared name -> (dimension, window). The order is the one they are shown in.
NAMES: dict[str, tuple[str, str]] = {
    **{
        f"{dimension}_per_{window}": (dimension, window)
        for dimension in ("requests", "tokens", "input_tokens", "output_tokens")
        for window in ("minute", "day", "week", "month")
    },
    "concurrent_requests": ("concurrency", "now"),
    "budget_per_day": ("money", "day"),
    "budget_per_week": ("money", "week"),
    "budget_per_month": ("money", "month"),
    "budget_lifetime": ("money", "lifetime"),
    "offline_credit": ("money", OFFLINE),
}
DECLARED_AS = {what: name for name, what in NAMES.items()}
#: Windows whose limits may be shared between processes while the store is away.
SHARED = frozenset(("minute", "now"))
NANO_PER_MICRO = 1000
PERMILLE = 1000
CREDIT_OF = "offline_credit is of a tenant or a project as a whole"
Rate = Annotated[int, Field(ge=1, le=10**11, strict=True)]  # quotas.buckets counts exactly to there
Count = Annotated[int, Field(ge=1, le=MAX_EXACT, strict=True)]
Holds = Annotated[int, Field(ge=0, le=10**9, strict=True)]


def _written_out(value: object) -> object:
    """A bare value is the limit itself."""
    return value if isinstance(value, dict) else {"limit": value}


def _weight(value: float) -> float:
    if round(value * PERMILLE) != value * PERMILLE:
        raise ValueError("at most three decimals, such as 0.25")
    return value


def _amount(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError(  # noqa: TRY004 -- what pydantic turns into a fault
            'a decimal in quotes, such as "25.00": a bare number is not exact'
        )
    try:
        nano = parse_amount(str(value))
    except MoneyError as error:
        raise ValueError(str(error)) from None
    if not 0 <= nano <= MAX_EXACT * NANO_PER_MICRO:
        raise ValueError("a budget is not negative, and at most 2 billion")
    return str(value)


Weight = Annotated[float, Field(ge=0, le=1), AfterValidator(_weight)]
Amount = Annotated[str, BeforeValidator(_amount)]


class _Written(BaseModel):
    """What any limit may say beside its number."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shadow: bool = False

    def row(self) -> LimitValue:
        raise NotImplementedError


class RatePart(_Written):
    limit: Rate
    burst: Rate | None = None
    outage: Literal["fail_closed", "local_share"] = "local_share"

    def row(self) -> LimitValue:
        return LimitValue(self.limit, self.burst, shadow=self.shadow, outage=self.outage)


class InputRatePart(RatePart):
    cached_input_weight: Weight = 1.0

    def row(self) -> LimitValue:
        weight = round(self.cached_input_weight * PERMILLE)
        return LimitValue(self.limit, self.burst, weight, self.shadow, self.outage)


class QuotaPart(_Written):
    limit: Count

    def row(self) -> LimitValue:
        return LimitValue(self.limit, shadow=self.shadow)


class InputQuotaPart(QuotaPart):
    cached_input_weight: Weight = 1.0

    def row(self) -> LimitValue:
        weight = round(self.cached_input_weight * PERMILLE)
        return LimitValue(self.limit, cached_permille=weight, shadow=self.shadow)


class HoldsPart(_Written):
    limit: Holds
    outage: Literal["fail_closed", "local_share"] = "local_share"

    def row(self) -> LimitValue:
        return LimitValue(self.limit, shadow=self.shadow, outage=self.outage)


class BudgetPart(_Written):
    limit: Amount

    def row(self) -> LimitValue:
        return LimitValue(parse_amount(self.limit) // NANO_PER_MICRO, shadow=self.shadow)


class CreditPart(_Written):
    """Spent while the store is away; there is nothing to try in the shadow."""

    shadow: Literal[False] = False
    limit: Amount

    def row(self) -> LimitValue:
        return LimitValue(parse_amount(self.limit) // NANO_PER_MICRO)


_Rate = Annotated[RatePart, BeforeValidator(_written_out)] | None
_InputRate = Annotated[InputRatePart, BeforeValidator(_written_out)] | None
_Quota = Annotated[QuotaPart, BeforeValidator(_written_out)] | None
_InputQuota = Annotated[InputQuotaPart, BeforeValidator(_written_out)] | None
_Budget = Annotated[BudgetPart, BeforeValidator(_written_out)] | None


class ScopeLimits(BaseModel):
    """The limits of one scope by their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    requests_per_minute: _Rate = None
    requests_per_day: _Quota = None
    requests_per_week: _Quota = None
    requests_per_month: _Quota = None
    tokens_per_minute: _InputRate = None
    tokens_per_day: _InputQuota = None
    tokens_per_week: _InputQuota = None
    tokens_per_month: _InputQuota = None
    input_tokens_per_minute: _InputRate = None
    input_tokens_per_day: _InputQuota = None
    input_tokens_per_week: _InputQuota = None
    input_tokens_per_month: _InputQuota = None
    output_tokens_per_minute: _Rate = None
    output_tokens_per_day: _Quota = None
    output_tokens_per_week: _Quota = None
    output_tokens_per_month: _Quota = None
    concurrent_requests: Annotated[HoldsPart, BeforeValidator(_written_out)] | None = None
    budget_per_day: _Budget = None
    budget_per_week: _Budget = None
    budget_per_month: _Budget = None
    budget_lifetime: _Budget = None
    offline_credit: Annotated[CreditPart, BeforeValidator(_written_out)] | None = None
    requests_burst: Rate | None = None  # of requests_per_minute, where that is a bare number
    tokens_burst: Rate | None = None

    def values(self) -> dict[tuple[str, str], LimitValue]:
        """(dimension, window) -> the limits that are set."""
        bursts = {
            "requests_per_minute": self.requests_burst,
            "tokens_per_minute": self.tokens_burst,
        }
        found = {}
        for name, what in NAMES.items():
            part: _Written | None = getattr(self, name)
            if part is None:
                continue
            value = part.row()
            if value.burst is None and bursts.get(name) is not None:
                value = LimitValue(
                    value.value, bursts[name], value.cached_permille, value.shadow, value.outage
                )
            found[what] = value
        return found


class SharedLimits(ScopeLimits):
    """Limits that all tenants share: of the platform, a pool or a model. Their calendar is UTC's."""

    @model_validator(mode="after")
    def _no_money(self) -> "SharedLimits":
        for name, (dimension, _) in NAMES.items():
            if dimension == "money" and getattr(self, name) is not None:
                raise ValueError(f"{name}: money is limited for tenants, projects and keys")
        return self

    def rows(self) -> dict[LimitName, LimitValue]:
        """Every limit that is set."""
        return {LimitName(*what): value for what, value in self.values().items()}


class LimitsPart(ScopeLimits):
    """``models``: further limits of the same scope, of one model each; ``end_user``: of each end user
    that requests name.
    """

    models: dict[str, ScopeLimits] = {}
    end_user: ScopeLimits = ScopeLimits()

    @model_validator(mode="after")
    def _credit_is_whole(self) -> "LimitsPart":
        if any(each.offline_credit for each in (*self.models.values(), self.end_user)):
            raise ValueError(CREDIT_OF)
        return self

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """An empty mapping in YAML reads as null."""
        if isinstance(value, dict):
            return {
                k: v for k, v in value.items() if not (k in ("models", "end_user") and v is None)
            }
        return value

    def rows(self, model_ids: dict[str, int]) -> dict[LimitName, LimitValue]:
        """Every limit that is set; ``model_ids`` has each name in ``models``."""
        found = {LimitName(*what): value for what, value in self.values().items()}
        for name, part in self.models.items():
            for what, value in part.values().items():
                found[LimitName(*what, model_id=model_ids[name])] = value
        for what, value in self.end_user.values().items():
            found[LimitName(*what, each="user")] = value
        return found


class KeyLimits(LimitsPart):
    """Those of a key."""

    @model_validator(mode="after")
    def _no_credit(self) -> "KeyLimits":
        if self.offline_credit is not None:
            raise ValueError(CREDIT_OF)
        return self


def shown(name: LimitName, value: LimitValue) -> dict[str, object]:
    """A row as people read it: the declared name and what it says."""
    limit: object = value.value
    if name.dimension == "money":
        whole, rest = divmod(value.value, 1_000_000)
        limit = f"{whole}.{rest:06d}".rstrip("0").ljust(len(str(whole)) + 3, "0")
    said: dict[str, object] = {"limit": limit}
    if value.burst is not None:
        said["burst"] = value.burst
    if value.cached_permille != PERMILLE:
        said["cached_input_weight"] = value.cached_permille / PERMILLE
    if value.shadow:
        said["shadow"] = True
    if name.window in SHARED and value.outage != "local_share":
        said["outage"] = value.outage
    return said
