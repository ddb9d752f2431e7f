"""What a receiver outside is told, as values: a record's usage, a correction of it, an alert.

An event's id is made of what it tells of (a request's id, an entry's key, a period and a threshold),
so the same thing told twice has the same id, whoever tells it and however often. Not here: how a
receiver wants it written (``gateway.control.formats``), rows (``gateway.store.outbox``).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from quotas.money import decimal

USAGE = "tokenfactory.usage.v1"
CORRECTION = "tokenfactory.correction.v1"
#: What a webhook may be told.
ALERTS = ("budget.threshold", "balance.low", "endpoint.down", "endpoint.up")
#: Meters that are always there, so that a receiver's sums find them.
METERS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """``subject`` is the tenant's name, empty where it is of none. ``data`` is plain JSON; amounts in
    it are decimal texts.
    """

    id: str
    type: str
    subject: str
    time_ms: int
    data: dict[str, Any]


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Whose usage it is; None for a row that has no name."""

    tenant: str | None
    project: str | None
    key: str | None
    model: str | None


def usage_event(
    names: Names,
    row: Mapping[str, Any],
    operation: str,
    usage: Mapping[str, int],
    price_version: int | None,
) -> Event:
    """Of one row of ``usage_records``. ``cost`` is what it costs at its price, ``charged`` what the
    tenant's contract made of it.
    """
    meters = dict.fromkeys(METERS, 0) | dict(usage)
    meters["total_tokens"] = meters["prompt_tokens"] + meters["completion_tokens"]
    return Event(
        id=row["request_id"],
        type=USAGE,
        subject=names.tenant or "",
        time_ms=row["started_ms"],
        data={
            "request_id": row["request_id"],
            **msgspec.structs.asdict(names),
            "operation": operation,
            "outcome": row["outcome"],
            "counted_by": row["source"],
            "requests": 1,
            **meters,
            "cost": decimal(row["cost_nano"]),
            "charged": decimal(row["charged_nano"]),
            "currency": row["currency"] or None,
            "price_version": price_version,
        },
    )


def correction_event(
    names: Names, request_id: str, entry: Mapping[str, Any], charged_nano: int
) -> Event:
    """Of one correcting entry. ``charged`` is what it adds to what the tenant was charged: the sum
    of a record's ``charged`` and its corrections' is what stands.
    """
    return Event(
        id=entry["entry_key"],
        type=CORRECTION,
        subject=names.tenant or "",
        time_ms=entry["occurred_ms"],
        data={
            "request_id": request_id,
            **msgspec.structs.asdict(names),
            "kind": entry["kind"],
            "reverses": entry["reverses"] or None,
            "charged": decimal(charged_nano),
            "currency": entry["currency"],
        },
    )


def rfc3339(unix_ms: int) -> str:
    """UTC, milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
