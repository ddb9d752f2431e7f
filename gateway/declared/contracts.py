"""Contracts, publishers' shares and endpoints' costs in the declared file.

    contract: {kind: commitment, currency: USD, commitment: "5000", overage: "1.2"}
    shares: [{publisher: acme-labs, percent: "70"}]
    cost: {gpu_hour: "2.50", gpus: 8}

Not here: rows (``gateway.store``), what they make of a charge (``quotas.charging``).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gateway.declared.prices import (
    Currency,
    DecimalPrice,
    Factor,
    From,
    exact,
    parts_per_million,
)
from quotas.contracts import Contract
from quotas.costs import EndpointCost
from quotas.money import parse_amount, parse_price
from quotas.shares import BASIS_POINTS, Share

_NANO_PER_BASIS_POINT = 10**7


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _percent(value: object) -> object:
    text = exact(value)
    if not isinstance(text, str):
        raise ValueError('a percentage in quotes, such as "70"')  # noqa: TRY004 -- as above
    nano = parse_amount(text)
    if nano % _NANO_PER_BASIS_POINT or not 0 <= nano <= 100 * 10**9:
        raise ValueError('a percentage from 0 to 100 with at most two decimals, such as "70"')
    return text


class ContractPart(_Part):
    kind: Literal["free", "payg", "prepaid", "commitment"]
    currency: Currency = "USD"
    credit_line: DecimalPrice | None = None
    commitment: DecimalPrice | None = None
    overage: Factor = "1"
    from_ms: From = Field(0, alias="from", validate_default=False)  # begins by itself then

    def contract(self, tenant_id: int) -> Contract:
        line = self.credit_line
        return Contract(
            id=0,
            version=0,
            tenant_id=tenant_id,
            kind=self.kind,
            currency=self.currency,
            credit_line_nano=-1 if line is None else parse_price(line),
            commitment_nano=0 if self.commitment is None else parse_price(self.commitment),
            overage_ppm=parts_per_million(self.overage),
            from_ms=self.from_ms,
        )

    @model_validator(mode="after")
    def _belongs(self) -> "ContractPart":
        if (self.commitment is not None) != (self.kind == "commitment"):
            raise ValueError("commitment: an amount a month, of a contract of that kind")
        if self.overage != "1" and self.kind != "commitment":
            raise ValueError("overage: only of a commitment")
        if self.credit_line is not None and self.kind in ("free", "prepaid"):
            raise ValueError(f"credit_line: a {self.kind} contract owes nothing")
        return self


class SharePart(_Part):
    publisher: str
    percent: Annotated[str, BeforeValidator(_percent)] = "0"
    floor: DecimalPrice | None = None  # per million tokens

    def share(self, publisher_id: int) -> Share:
        return Share(
            publisher_id=publisher_id,
            basis_points=self.basis_points,
            floor_nano_per_million=0 if self.floor is None else parse_price(self.floor),
        )

    @property
    def basis_points(self) -> int:
        return parse_amount(self.percent) // _NANO_PER_BASIS_POINT


class CostPart(_Part):
    """Per million tokens, or per hour of a GPU times their number."""

    currency: Currency = "USD"
    input: DecimalPrice | None = None
    output: DecimalPrice | None = None
    gpu_hour: DecimalPrice | None = None
    gpus: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 1

    def cost(self) -> EndpointCost:
        return EndpointCost(
            input_nano=0 if self.input is None else parse_price(self.input),
            output_nano=0 if self.output is None else parse_price(self.output),
            hour_nano=0 if self.gpu_hour is None else parse_price(self.gpu_hour) * self.gpus,
            currency=self.currency,
        )


def check_shares(parts: list[SharePart]) -> None:
    """Together at most the whole, each publisher once; raises ``ValueError``."""
    if sum(part.basis_points for part in parts) > BASIS_POINTS:
        raise ValueError("shares: together at most 100 percent")
    names = [part.publisher for part in parts]
    if len(set(names)) != len(names):
        raise ValueError("shares: each publisher once")
