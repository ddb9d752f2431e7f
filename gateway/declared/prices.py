"""Prices in the declared file: meters, conditions, tiers; decimal texts in, ``quotas.pricing`` out.

    price:
      currency: USD
      input: "0.10"
      output: "0.40"
      when:
        - {over_context_tokens: 128000, input: "0.20"}
        - {hours: "22-6", output: "0.20"}
      time_zone: Europe/Berlin
      tiers: {batch: "0.5", priority: "1.5"}
      from: 2027-01-01

Not here: rows (``gateway.store.catalog``).
"""

import datetime as dt
import re
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from quotas.errors import MoneyError
from quotas.money import format_amount, parse_amount, parse_price
from quotas.pricing import DEFAULT_TIER, Price, Rate, conflict

#: Declared name -> meter.
METER_OF = {
    "input": "input",
    "cached_input": "cached_input",
    "cache_write": "cache_write",
    "output": "output",
    "reasoning": "reasoning",
    "embedding": "embedding",
    "rerank": "rerank",
    "request": "requests",
    "image": "images",
    "audio_second": "audio_seconds",
}
NANO_PER_PPM = 1_000
_HOURS = re.compile(r"([01]?[0-9]|2[0-3])-([01]?[0-9]|2[0-4])", re.ASCII)


def exact(value: object) -> object:
    """A number that YAML read as a float is not what was written."""
    if isinstance(value, float):
        raise ValueError(  # noqa: TRY004 -- what pydantic turns into a fault
            'a decimal in quotes, such as "0.10": a bare number is not exact'
        )
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _price(value: str) -> str:
    try:
        parse_price(value)
    except MoneyError as error:
        raise ValueError(str(error)) from None
    return value


def parts_per_million(text: str) -> int:
    """A factor such as "0.5", exactly; raises ``ValueError``."""
    try:
        nano = parse_amount(text)
    except MoneyError as error:
        raise ValueError(str(error)) from None
    if nano < 0 or nano % NANO_PER_PPM or nano > 1_000 * 10**9:
        raise ValueError('a factor from 0 to 1000 with at most six decimals, such as "0.5"')
    return nano // NANO_PER_PPM


def _factor(value: str) -> str:
    parts_per_million(value)
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("the name of a time zone, such as Europe/Berlin") from None
    return value


def _hours(value: object) -> object:
    match = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == int(match[2]) % 24:
        raise ValueError('hours of the day, from and to, such as "22-6"')
    return value


def _moment(value: object) -> object:
    """A day or a time, in UTC where it says no zone; Unix ms."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                'a day or a time, such as "2027-01-01" or "2027-01-01T06:00"'
            ) from None
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    if not isinstance(value, dt.datetime):
        raise ValueError("a day or a time, such as 2027-01-01")  # noqa: TRY004 -- as above
    aware = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
    return int(aware.timestamp() * 1_000)


#: From when on; what is in the past is from now on.
From = Annotated[int, BeforeValidator(_moment)]
DecimalPrice = Annotated[str, BeforeValidator(exact), AfterValidator(_price)]
Factor = Annotated[str, BeforeValidator(exact), AfterValidator(_factor)]
TimeZone = Annotated[str, AfterValidator(_zone)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Tier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Meters(BaseModel):
    """A price a meter: per million tokens, or per request, image and second."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: DecimalPrice | None = None
    cached_input: DecimalPrice | None = None
    cache_write: DecimalPrice | None = None
    output: DecimalPrice | None = None
    reasoning: DecimalPrice | None = None
    embedding: DecimalPrice | None = None
    rerank: DecimalPrice | None = None
    request: DecimalPrice | None = None
    image: DecimalPrice | None = None
    audio_second: DecimalPrice | None = None

    def nano(self) -> dict[str, int]:
        """Meter -> nano-units per million tokens, or per one."""
        texts = {meter: getattr(self, name) for name, meter in METER_OF.items()}
        return {meter: parse_price(text) for meter, text in texts.items() if text is not None}

    @model_validator(mode="after")
    def _priced(self) -> "Meters":
        if not self.nano():
            raise ValueError(f"a price of one of {', '.join(METER_OF)}")
        return self


class WhenPart(Meters):
    """Other prices under a condition."""

    over_context_tokens: Annotated[int, Field(ge=0, le=10**9, strict=True)] | None = None
    hours: Annotated[str, BeforeValidator(_hours)] | None = None

    def rates(self) -> list[Rate]:
        hours = None
        if self.hours is not None:
            start, _, end = self.hours.partition("-")
            hours = (int(start), int(end) % 24)
        over = -1 if self.over_context_tokens is None else self.over_context_tokens
        return [
            Rate(meter=meter, nano=nano, over_context_tokens=over, hours=hours)
            for meter, nano in self.nano().items()
        ]

    @model_validator(mode="after")
    def _conditioned(self) -> "WhenPart":
        if self.over_context_tokens is None and self.hours is None:
            raise ValueError("a condition: over_context_tokens, hours, or both")
        return self


class PricePart(Meters):
    """``from``: the price begins by itself then; until then the one before stays."""

    from_ms: From = Field(0, alias="from", validate_default=False)
    currency: Currency = "USD"
    when: list[WhenPart] = []
    time_zone: TimeZone = "UTC"
    tiers: dict[Tier, Factor] | None = None

    def prices(self, tenant_id: int = 0, tiers: dict[str, int] | None = None) -> list[Price]:
        """One a tier, the default first; ``tiers`` (ppm) where the file says none."""
        said = self.tiers
        factors = (
            tiers or {} if said is None else {k: parts_per_million(v) for k, v in said.items()}
        )
        rates = tuple(rate for part in self.when for rate in part.rates())
        return [
            Price(
                id=0,
                version=0,
                currency=self.currency,
                nano=self.nano(),
                conditional=rates,
                tier=tier,
                multiplier_ppm=factor,
                time_zone=self.time_zone,
                tenant_id=tenant_id,
            )
            for tier, factor in {DEFAULT_TIER: 1_000_000, **factors}.items()
        ]

    @model_validator(mode="after")
    def _one_price_a_moment(self) -> "PricePart":
        meter = conflict(tuple(rate for part in self.when for rate in part.rates()))
        if meter is not None:
            raise ValueError(f"when: two prices of {meter} hold at the same time")
        strange = {rate.meter for part in self.when for rate in part.rates()} - self.nano().keys()
        if strange:
            raise ValueError(f"when: {min(strange)} has no price without a condition")
        if self.tiers and DEFAULT_TIER in self.tiers:
            raise ValueError("tiers: default is the price itself")
        return self


def shown(price: Price) -> dict[str, Any]:
    """A price as files and answers have it; ``PricePart`` reads it back."""
    name_of = {meter: name for name, meter in METER_OF.items()}
    said: dict[str, Any] = {"currency": price.currency}
    said |= {name_of[meter]: format_amount(nano) for meter, nano in price.nano.items()}
    if price.conditional:
        said["when"] = [
            {
                name_of[rate.meter]: format_amount(rate.nano),
                **({"over_context_tokens": rate.over_context_tokens}
                   if rate.over_context_tokens >= 0 else {}),
                **({"hours": f"{rate.hours[0]}-{rate.hours[1]}"} if rate.hours else {}),
            }
            for rate in price.conditional
        ]  # fmt: skip
    if price.time_zone != "UTC":
        said["time_zone"] = price.time_zone
    return said
