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
    start_ms = row.started_ms // HOUR_MS * HOUR_MS
    rows = []
    for line, nano in zip(used, billed, strict=True):
        made = _blank(row, seller, invoice)
        made |= _metered(row.model, line.meter, line.units, line.nano, price, row.price_version)
        made |= {
            "BilledCost": decimal(nano),
            "EffectiveCost": decimal(nano),
            "ChargeDescription": f"{row.model}: {line.meter}",
            "ChargePeriodStart": moment(start_ms),
            "ChargePeriodEnd": moment(start_ms + HOUR_MS),
            "PricingCurrencyEffectiveCost": decimal(nano),
            "SubAccountId": str(row.project_id),
            "SubAccountName": row.project,
            "SubAccountType": "Project",
            "Tags": _json({"key": row.key}) if row.key else None,
            "x_RequestId": row.request_id,
            "x_KeyName": row.key,
        }
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
        start_ms = row.occurred_ms // HOUR_MS * HOUR_MS
        of = row.reverses or row.entry_key.split(":")[1]
        made |= {
            "ChargeClass": "Correction",
            "ChargeDescription": f"{row.kind} of {of}",
            "ChargePeriodStart": moment(start_ms),
            "ChargePeriodEnd": moment(start_ms + HOUR_MS),
        }
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
    made: Row = dict.fromkeys((*COLUMNS, *OWN_COLUMNS))
    start, end = _bounds(row.month)
    made |= {
        "BillingAccountId": str(row.tenant_id),
        "BillingAccountName": row.tenant,
        "BillingAccountType": "Tenant",
        "BillingCurrency": row.currency,
        "BillingPeriodStart": start,
        "BillingPeriodEnd": end,
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "InvoiceId": None if invoice is None else str(invoice),
        "InvoiceIssuerName": seller.name,
        "PricingCurrency": row.currency,
        "ProviderName": seller.name,
        "PublisherName": seller.name,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "ServiceSubcategory": "Generative AI",
    }
    if row.model:
        made |= {"ResourceId": row.model, "ResourceName": row.model, "ResourceType": "Model"}
    return made


def _metered(
    model: str | None, meter: str, units: int, nano: int | None, price: Price, version: int | None
) -> Row:
    """Quantity and price of one meter. ``nano`` None: the unit price varied (hours, contexts)."""
    per = PER[meter]
    unit = UNIT_OF.get(meter, "Tokens")
    made: Row = {
        "ConsumedQuantity": str(units),
        "ConsumedUnit": unit,
        "PricingCategory": "Standard",
        "PricingQuantity": exact(units, 6) if per == MILLION else str(units),
        "PricingUnit": f"{MILLION} {unit}" if per == MILLION else unit,
        "SkuId": f"{model}/{meter}",
        "SkuMeter": f"{meter.replace('_', ' ')} {unit}".title(),
        "SkuPriceId": f"{model}/{meter}/{version}",
        "SkuPriceDetails": None if price.tier == DEFAULT_TIER else _json({"Tier": price.tier}),
    }
    if nano is not None:
        scaled = nano * price.multiplier_ppm  # of 10^-15 of the currency's unit
        unit_price = exact(scaled, 15)
        cost = exact(units * scaled, 21 if per == MILLION else 15)
        made |= {
            "ContractedCost": cost,
            "ContractedUnitPrice": unit_price,
            "ListCost": cost,
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


def _bounds(month: int) -> tuple[str, str]:
    start_ms, end_ms = bounds_ms(month)
    return moment(start_ms), moment(end_ms)


def _json(value: Mapping[str, str]) -> str:
    return msgspec.json.encode(value).decode()
