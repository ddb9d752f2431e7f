"""Sinks and webhooks in the declared file: who is told, where, and how.

    sinks: [{name: meter, url: "https://openmeter.example/api/v1/events", auth_env: OPENMETER_KEY}]
    webhooks: [{name: pager, url: "https://ops.example/hook", secret_env: PAGER_SECRET}]

Secrets are named by variable or file and are nowhere else. Not here: rows (``gateway.store.sinks``),
sending (``gateway.control.deliveries``).
"""

from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gateway.store.sinks import Options
from gateway.wire.dial import parse_endpoint

_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Header = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9\-]{0,63}$")]
_Text = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}$")]
#: Headers of a message that are ours to say.
_OURS = frozenset({"host", "content-length", "content-type", "connection", "transfer-encoding"})


def _receiver(value: str) -> str:
    try:
        parse_endpoint(value)
    except ValueError as wrong:
        said = str(wrong).removeprefix("endpoint url: ")
        if "@" in value or "?" in value:  # it may hold a secret
            raise ValueError("no credentials and no query: a secret belongs in auth_env") from None
        raise ValueError(said) from None
    return value


class _Receiver(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: _Name
    url: Annotated[str, AfterValidator(_receiver)]
    timeout_s: Annotated[float, Field(ge=0.1, le=60)] = 10.0
    tenants: list[_Name] | None = None
    auth_header: _Header = "authorization"
    auth_env: _Variable | None = None
    auth_file: str | None = None
    secret_env: _Variable | None = None
    secret_file: str | None = None
    ca_file: str | None = None

    @model_validator(mode="after")
    def _one_place_each(self) -> "_Receiver":
        if self.auth_env and self.auth_file:
            raise ValueError("auth_env, auth_file: expected one of them")
        if self.secret_env and self.secret_file:
            raise ValueError("secret_env, secret_file: expected one of them")
        if self.auth_header.lower() in _OURS or self.auth_header.lower().startswith("webhook-"):
            raise ValueError(f"auth_header: {self.auth_header} is set by the gateway")
        return self

    def _shared(self) -> dict[str, object]:
        names = ("url", "timeout_s", "tenants", "auth_header", "auth_env", "auth_file", "ca_file")
        return {name: getattr(self, name) for name in (*names, "secret_env", "secret_file")}


class SinkPart(_Receiver):
    """A receiver of usage: every record of the ledger, and every correction."""

    format: Literal["cloudevents", "lago", "stripe"] = "cloudevents"
    batch: Annotated[int, Field(ge=1, le=1_000, strict=True)] = 100
    start: Literal["beginning", "now"] = "beginning"
    source: _Text = "tokenfactory"
    event_name: _Text | None = None
    value: Literal[
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "total_tokens",
        "requests",
        "charged_nano",
    ] = "total_tokens"
    subjects: dict[_Name, _Text] = {}

    @model_validator(mode="after")
    def _fits_the_format(self) -> "SinkPart":
        if (self.event_name is None) != (self.format == "cloudevents"):
            raise ValueError("event_name: the metric at lago or stripe, expected for those alone")
        if self.format == "stripe" and not self.subjects:
            raise ValueError("subjects: expected a customer for each tenant, such as acme: cus_1")
        if self.value != "total_tokens" and self.format != "stripe":
            raise ValueError("value: only stripe adds up one number")
        return self

    def options(self) -> Options:
        own = {
            "format": self.format,
            "batch": self.batch,
            "source": self.source,
            "event_name": self.event_name or "",
            "value": self.value,
            "subjects": self.subjects,
        }
        return msgspec.convert(own | self._shared(), Options)


class WebhookPart(_Receiver):
    """A receiver of alerts, each signed."""

    events: (
        list[Literal["budget.threshold", "balance.low", "endpoint.down", "endpoint.up"]] | None
    ) = None

    @model_validator(mode="after")
    def _signed(self) -> "WebhookPart":
        if not (self.secret_env or self.secret_file):
            raise ValueError("secret_env or secret_file: expected the place of the signing secret")
        return self

    def options(self) -> Options:
        own = {"format": "webhook", "batch": 1, "events": self.events}
        return msgspec.convert(own | self._shared(), Options)
