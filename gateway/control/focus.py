"""Charges as rows of FOCUS 1.2 (FinOps Open Cost and Usage Specification), all 57 columns.

A record is one row for each meter it used; what it was charged is spread over them so that they sum
to it exactly. Unit prices, quantities and list costs are exact decimals, unrounded, so that price
times quantity is the cost to the last digit. Corrections, true-ups and reserved hours are rows of
their own. Billed costs of a tenant's month sum to its statement. Pure.
Source: https://focus.finops.org/focus-specification/v1-2/. Not here: pages and formats
(``gateway.control.exports``).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from quotas.meters import PER
from quotas.money import MILLION, decimal
from quotas.months import bounds_ms
from quotas.pricing import DEFAULT_TIER, Line, Price
from quotas.shares import split
from quotas.statement import Statement, StatementLine

HOUR_MS = 3_600_000
COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName",
    "BillingAccountType", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "CapacityReservationId", "CapacityReservationStatus", "ChargeCategory", "ChargeClass",
    "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost",
    "ListUnitPrice", "PricingCategory", "PricingCurrency", "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory",
    "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName",
    "SubAccountType", "Tags",
)  # fmt: skip
#: Of this product: a column of one's own begins with x_.
OWN_COLUMNS = ("x_Cursor", "x_RequestId", "x_KeyName")
UNIT_OF = {"requests": "Requests", "images": "Images", "audio_seconds": "Seconds"}
MONTHLY = {"shortfall": "commitment true-up", "throughput": "reserved throughput"}
#: Lines of a statement that lower it: throughput covered, the free tier.
CREDITS = ("throughput_covered", "free_tier")
Row = dict[str, Any]


class Seller(msgspec.Struct, frozen=True):
    """Who provides and bills."""

    name: str


def rows_of_record(
    row: Any, price: Price, lines: Sequence[Line], seller: Seller, invoice: int | None
) -> list[Row]:
    """The meters that a record used; a record that used none is no row."""
    used = [line for line in lines if line.units]
    if not used:
        return []
    amounts = [line.amount for line in used]
    billed = split(row.charged_nano, amounts) if any(amounts) else [0] * len(used)
    of_record = _blank(row, seller, invoice)
    of_record |= _charge_period(row.started_ms)
    of_record |= {
        "SubAccountId": str(row.project_id),
        "SubAccountName": row.project,
        "SubAccountType": "Project",
        "Tags": _tags(row.key),
        "x_RequestId": row.request_id,
        "x_KeyName": row.key,
    }
    rows = []
    for line, nano in zip(used, billed, strict=True):
        amount = decimal(nano)
        made = of_record.copy()
        made |= _metered(row.model, line.meter, line.units, line.nano, price, row.price_version)
        made["BilledCost"] = made["EffectiveCost"] = amount
        made["PricingCurrencyEffectiveCost"] = amount
        made["ChargeDescription"] = f"{row.model}: {line.meter}"
        rows.append(made)
    return rows


def row_of_charge(row: Any, seller: Seller, invoice: int | None) -> Row:
    """A correction, a true-up, or a month's reserved hours."""
    amount = decimal(int(row.nano))  # PostgreSQL sums integers as decimals
    made = _blank(row, seller, invoice)
    made |= _lump(amount)
    if row.kind in MONTHLY:
        made |= _monthly(row.kind, amount, row.currency)
        made["ChargePeriodStart"], made["ChargePeriodEnd"] = _bounds(row.month)
    else:
        of = row.reverses or row.entry_key.split(":")[1]
        made |= _charge_period(row.occurred_ms)
        made |= {"ChargeClass": "Correction", "ChargeDescription": f"{row.kind} of {of}"}
    return made


def rows_of_statement(
    statement: Statement, prices: Mapping[tuple[str, int], Price], seller: Seller
) -> list[Row]:
    """A closed month, line by line; billed costs sum to what it charged. ``prices``: by model and
    version.
    """
    start, end = _bounds(int(statement.period.replace("-", "")))
    rows = []
    for line in statement.lines:
        if line.meter == "records":
            continue
        head = _Head(statement, line)
        made = _blank(head, seller, statement.number)
        made |= {"ChargePeriodStart": start, "ChargePeriodEnd": end}
        amount = decimal(line.amount_nano)
        price = prices.get((line.model, line.price_version))
        if line.meter in PER and price is not None:
            made |= _metered(line.model, line.meter, line.units, None, price, line.price_version)
            made |= {"ListCost": amount, "ContractedCost": amount}
        else:
            made |= _lump(amount)
            if line.meter in ("commitment_shortfall", "throughput"):
                kind = "shortfall" if line.meter == "commitment_shortfall" else "throughput"
                made |= _monthly(kind, amount, statement.currency)
            elif line.meter in CREDITS:
                made["ChargeCategory"] = "Credit"
            else:  # reversed; overage
                made["ChargeClass"] = "Correction"
        made |= {
            "BilledCost": amount,
            "EffectiveCost": amount,
            "PricingCurrencyEffectiveCost": amount,
            "ChargeDescription": f"{line.model}: {line.meter}" if line.model else line.meter,
        }
        rows.append(made)
    return rows


def moment(at_ms: int) -> str:
    """FOCUS's DateTimeFormat: UTC, ISO 8601, with a Z."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def exact(numerator: int, decimals: int) -> str:
    """``numerator`` / 10 ** ``decimals``, all of it.

    >>> exact(1_500, 6), exact(3_000_000, 6)
    ('0.0015', '3')
    """
    sign = "-" if numerator < 0 else ""
    whole, rest = divmod(abs(numerator), 10**decimals)
    return f"{sign}{whole}.{rest:0{decimals}d}".rstrip("0").rstrip(".")


class _Head:
    """A statement's line as ``_blank`` reads a row."""

    def __init__(self, statement: Statement, line: StatementLine) -> None:
        self.tenant_id, self.tenant = statement.party_id, statement.party
        self.currency = statement.currency
        self.month = int(statement.period.replace("-", ""))
        self.model: str | None = line.model or None
        self.model_id = 0


def _blank(row: Any, seller: Seller, invoice: int | None) -> Row:
    """What every row of a tenant's month says; the rest is null."""
    return _of_party(
        row.tenant_id, row.tenant, row.month, row.currency, row.model, invoice, seller.name
    ).copy()


@lru_cache(maxsize=1_000)
def _of_party(
    tenant_id: int,
    tenant: str,
    month: int,
    currency: str,
    model: str | None,
    invoice: int | None,
    seller: str,
) -> Row:
    """To be copied: the millions of rows of an export have few of these."""
    made: Row = dict.fromkeys((*COLUMNS, *OWN_COLUMNS))
    start, end = _bounds(month)
    made |= {
        "BillingAccountId": str(tenant_id),
        "BillingAccountName": tenant,
        "BillingAccountType": "Tenant",
        "BillingCurrency": currency,
        "BillingPeriodStart": start,
        "BillingPeriodEnd": end,
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "InvoiceId": None if invoice is None else str(invoice),
        "InvoiceIssuerName": seller,
        "PricingCurrency": currency,
        "ProviderName": seller,
        "PublisherName": seller,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "ServiceSubcategory": "Generative AI",
    }
    if model:
        made |= {"ResourceId": model, "ResourceName": model, "ResourceType": "Model"}
    return made


def _metered(
    model: str | None, meter: str, units: int, nano: int | None, price: Price, version: int | None
) -> Row:
    """Quantity and price of one meter. ``nano`` None: the unit price varied (hours, contexts)."""
    of_millions = PER[meter] == MILLION
    made = _of_meter(model, meter, nano, price.multiplier_ppm, price.tier, version).copy()
    made["ConsumedQuantity"] = str(units)
    made["PricingQuantity"] = exact(units, 6) if of_millions else str(units)
    if nano is not None:
        cost = exact(units * nano * price.multiplier_ppm, 21 if of_millions else 15)
        made["ContractedCost"] = made["ListCost"] = cost
    return made


@lru_cache(maxsize=1_000)
def _of_meter(
    model: str | None,
    meter: str,
    nano: int | None,
    multiplier_ppm: int,
    tier: str,
    version: int | None,
) -> Row:
    """To be copied: what all rows of one meter at one price say."""
    unit = UNIT_OF.get(meter, "Tokens")
    made: Row = {
        "ConsumedUnit": unit,
        "PricingCategory": "Standard",
        "PricingUnit": f"{MILLION} {unit}" if PER[meter] == MILLION else unit,
        "SkuId": f"{model}/{meter}",
        "SkuMeter": f"{meter.replace('_', ' ')} {unit}".title(),
        "SkuPriceId": f"{model}/{meter}/{version}",
        "SkuPriceDetails": None if tier == DEFAULT_TIER else _json({"Tier": tier}),
    }
    if nano is not None:
        unit_price = exact(nano * multiplier_ppm, 15)  # of 10^-15 of the currency's unit
        made |= {
            "ContractedUnitPrice": unit_price,
            "ListUnitPrice": unit_price,
            "PricingCurrencyContractedUnitPrice": unit_price,
            "PricingCurrencyListUnitPrice": unit_price,
        }
    return made


def _lump(amount: str) -> Row:
    """A cost of no price and quantity."""
    costs = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
    return {**dict.fromkeys(costs, amount), "PricingCurrencyEffectiveCost": amount}


def _monthly(kind: str, amount: str, currency: str) -> Row:
    """A purchase: one month of something."""
    return {
        "ChargeCategory": "Purchase",
        "ChargeFrequency": "Recurring",
        "ChargeDescription": MONTHLY[kind],
        "PricingCategory": "Standard",
        "PricingQuantity": "1",
        "PricingUnit": "Months",
        "ListUnitPrice": amount,
        "ContractedUnitPrice": amount,
        "PricingCurrencyListUnitPrice": amount,
        "PricingCurrencyContractedUnitPrice": amount,
        "SkuId": kind,
        "SkuPriceId": f"{kind}/{currency}",
    }


def _charge_period(at_ms: int) -> Row:
    """The hour of that moment."""
    start, end = _hour(at_ms // HOUR_MS)
    return {"ChargePeriodStart": start, "ChargePeriodEnd": end}


@lru_cache(maxsize=1_000)
def _hour(hour: int) -> tuple[str, str]:
    return moment(hour * HOUR_MS), moment((hour + 1) * HOUR_MS)


@lru_cache(maxsize=1_000)
def _bounds(month: int) -> tuple[str, str]:
    start_ms, end_ms = bounds_ms(month)
    return moment(start_ms), moment(end_ms)


@lru_cache(maxsize=1_000)
def _tags(key: str | None) -> str | None:
    return _json({"key": key}) if key else None


def _json(value: Mapping[str, str]) -> str:
    return msgspec.json.encode(value).decode()
