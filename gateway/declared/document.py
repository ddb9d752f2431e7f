"""The declared file as values, and errors that name file, path, value and what was expected.

YAML or JSON; unknown fields are errors, money is exact decimal strings. Not here: what is in the
database (``gateway.declared.apply``).
"""

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gateway.declared.contracts import ContractPart, CostPart, SharePart, check_shares
from gateway.declared.limits import KeyLimits, LimitsPart, ScopeLimits, SharedLimits
from gateway.declared.prices import DecimalPrice, PricePart, TimeZone, WhenPart
from gateway.declared.sinks import SinkPart, WebhookPart
from gateway.wire.dial import parse_endpoint

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}$"
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/\-]{0,255}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
ModelName = Annotated[str, Field(pattern=MODEL_PATTERN)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Tokens = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class DeclaredError(Exception):
    """What is wrong with the file, one fault a line."""


def _expiry(value: object) -> object:
    """A date is its last second, in UTC; a time without a zone is UTC."""
    if isinstance(value, str):
        try:
            value = dt.date.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.datetime.combine(value, dt.time(23, 59, 59), dt.UTC)
    if isinstance(value, dt.datetime) and value.tzinfo is None:
        return value.replace(tzinfo=dt.UTC)
    return value


def _endpoint(value: str) -> str:
    parse_endpoint(value)
    return value


Expiry = Annotated[dt.datetime, BeforeValidator(_expiry)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointPart(_Part):
    url: Annotated[str, AfterValidator(_endpoint)]
    dialect: Literal["vllm", "nim", "openai"] = "vllm"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    api_key_file: str | None = None
    ca_file: str | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 256
    usage: Literal["auto", "continuous", "final", "none"] = "auto"
    draining: bool = False
    cost: CostPart | None = None


class PoolPart(_Part):
    name: Name
    endpoints: list[EndpointPart] = []
    limits: SharedLimits = SharedLimits()


class TimeoutsPart(_Part):
    connect_s: Seconds = 5
    first_event_s: Seconds = 300
    gap_s: Seconds = 120
    unary_s: Seconds = 600
    stream_s: Seconds = 3600


class ModelPart(_Part):
    name: ModelName
    upstream: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,512}$")] | None = None
    pool: Name
    context_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None
    timeouts: TimeoutsPart = TimeoutsPart()
    price: PricePart | None = None
    shares: list[SharePart] | None = None
    limits: SharedLimits = SharedLimits()

    @model_validator(mode="after")
    def _shares_fit(self) -> "ModelPart":
        check_shares(self.shares or [])
        return self


class KeyPart(_Part):
    name: Name
    models: list[ModelName] | None = None
    expires: Expiry | None = None
    limits: KeyLimits = KeyLimits()


class ProjectPart(_Part):
    name: Name
    usage_cost: bool | None = None  # None: as it is
    limits: LimitsPart = LimitsPart()
    keys: list[KeyPart] = []


class OwnPricePart(PricePart):
    """What one tenant pays for a model, in place of everybody's price."""

    model: ModelName


class PublisherPart(_Part):
    name: Name


class TenantPart(_Part):
    name: Name
    time_zone: TimeZone = "UTC"
    low_balance: DecimalPrice | None = None  # webhooks are told below it
    contract: ContractPart | None = None
    prices: list[OwnPricePart] | None = None
    limits: LimitsPart = LimitsPart()
    projects: list[ProjectPart] = []


class Declared(_Part):
    """The whole file; every section may be missing. ``limits``: of all tenants together."""

    limits: SharedLimits | None = None
    pools: list[PoolPart] = []
    publishers: list[PublisherPart] = []
    models: list[ModelPart] = []
    tenants: list[TenantPart] = []
    sinks: list[SinkPart] = []
    webhooks: list[WebhookPart] = []

    @model_validator(mode="after")
    def _names_once(self) -> "Declared":
        _once("pools", [each.name for each in self.pools])
        _once("models", [each.name for each in self.models])
        _once("tenants", [each.name for each in self.tenants])
        _once("publishers", [each.name for each in self.publishers])
        _once("sinks, webhooks", [each.name for each in (*self.sinks, *self.webhooks)])
        for pool in self.pools:
            _once(f"pools.{pool.name}.endpoints", [each.url for each in pool.endpoints])
        for tenant in self.tenants:
            models = [each.model for each in tenant.prices or ()]
            _once(f"tenants.{tenant.name}.prices", models)
            _once(f"tenants.{tenant.name}.projects", [each.name for each in tenant.projects])
            for project in tenant.projects:
                path = f"tenants.{tenant.name}.projects.{project.name}.keys"
                _once(path, [each.name for each in project.keys])
        return self


#: The last name of a path -> what lies there.
SECTIONS: dict[str, type[BaseModel]] = {
    "pools": PoolPart,
    "endpoints": EndpointPart,
    "models": ModelPart,
    "timeouts": TimeoutsPart,
    "price": PricePart,
    "when": WhenPart,
    "prices": OwnPricePart,
    "shares": SharePart,
    "cost": CostPart,
    "contract": ContractPart,
    "publishers": PublisherPart,
    "tenants": TenantPart,
    "projects": ProjectPart,
    "keys": KeyPart,
    "limits": LimitsPart,
    "sinks": SinkPart,
    "webhooks": WebhookPart,
}


def _once(path: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: {name!r} comes twice, expected each name once")


def parse(document: object, file: str) -> Declared:
    """The file's content, already read as plain values. Raises ``DeclaredError``."""
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise DeclaredError(f"{file}: expected a mapping of pools, models and tenants")
    try:
        return Declared.model_validate(document)
    except ValidationError as error:
        faults = [_fault(file, each) for each in error.errors(include_url=False)]
        raise DeclaredError("\n".join(faults)) from None


def load(text: str, file: str) -> Declared:
    """YAML or JSON text. Raises ``DeclaredError``, with the line of a syntax error."""
    try:
        document = yaml.load(text, Loader=_OnceLoader)  # noqa: S506 -- a SafeLoader
    except (ValueError, TypeError, RecursionError):
        raise DeclaredError(f"{file}: not YAML (a value or a nesting no file needs)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise DeclaredError(f"{file}{line}: not YAML ({problem})") from None
    return parse(document, file)


class _OnceLoader(yaml.SafeLoader):
    """A key that comes twice is a mistake, not an override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- the library's signature
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} comes twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _fields_at(loc: Sequence[object]) -> Sequence[str]:
    """The fields of the section that a fault's path leads into."""
    names = [step for step in loc[:-1] if isinstance(step, str)]
    if "limits" in names and names[-1] != "limits":
        section: type[BaseModel] = ScopeLimits
    else:
        section = SECTIONS.get(names[-1], Declared) if names else Declared
    return tuple(section.model_fields)


def _fault(file: str, error: Any) -> str:
    path = ""
    for step in error["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = ", ".join(_fields_at(error["loc"]))
        shown = repr(error["input"])[:80]
        return f"{file}: {path}: {shown}: unknown field, expected one of {known}"
    if error["type"] == "missing":
        return f"{file}: {path}: missing, expected a value"
    shown = repr(error["input"])
    if path.endswith(".url") and ("@" in shown or "?" in shown):
        shown = "(hidden)"  # a secret, perhaps
    where = f"{path}: {shown[:80]}: " if path else ""
    return f"{file}: {where}{message[:1].lower()}{message[1:]}"
