"""Payments told by a provider: Stripe's signature and events, turned into credits to give or take.

The signature is HMAC-SHA-256 over "timestamp.body" (docs.stripe.com/webhooks, "Verify webhook
signatures manually"); amounts are in a currency's smallest unit (docs.stripe.com/currencies). The
payment's ``metadata.tenant`` names who is credited. Times are arguments. Not here: what a credit
does (``gateway.store.credit``), HTTP (``gateway.control.money``).
"""

import hashlib
import hmac
from typing import Any, Literal

import msgspec

TOLERANCE_S = 300
#: Digits after the point where they are not two.
_DIGITS = dict.fromkeys(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "JPY",
        "KMF",
        "KRW",
        "MGA",
        "PYG",
        "RWF",
        "UGX",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ],
    0,
) | dict.fromkeys(["BHD", "JOD", "KWD", "OMR", "TND"], 3)
_NANO_DIGITS = 9


class NotSigned(Exception):
    """The event does not carry a signature of ours, or an old one."""


class NotAnEvent(ValueError):
    """Signed, and still not what we can read; the message names what is missing."""


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """``verb`` ignore: nothing to do, said so that the provider stops telling us."""

    verb: Literal["credit", "reverse", "ignore"]
    event: str
    tenant: str = ""
    amount_nano: int = 0
    currency: str = ""
    reference: str = ""


def check_signature(header: str, body: bytes, secret: str, now_s: int) -> None:
    """Raises ``NotSigned``. Any of several v1 may fit: a secret is rolled over that way."""
    timestamp, given = "", []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            timestamp = value
        elif name == "v1":
            given.append(value)
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):  # noqa: PLR2004
        raise NotSigned("no timestamp")
    wanted = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given):
        raise NotSigned("no signature that fits")
    if abs(now_s - int(timestamp)) > TOLERANCE_S:
        raise NotSigned("too old")


def payment_of(body: bytes) -> Payment:
    """What an event asks of us; raises ``NotAnEvent``."""
    try:
        event: Any = msgspec.json.decode(body)
        kind, event_id, what = event["type"], event["id"], event["data"]["object"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise NotAnEvent("not an event: expected id, type and data.object") from None
    try:
        if kind == "payment_intent.succeeded":
            return _credit(event_id, what)
        if kind == "charge.refunded" and what["refunded"]:
            tenant = (what.get("metadata") or {}).get("tenant", "")
            return Payment(
                verb="reverse" if tenant else "ignore",
                event=event_id,
                tenant=tenant,
                reference=what["payment_intent"],
            )
    except (KeyError, TypeError, AttributeError) as missing:
        raise NotAnEvent(f"{kind}: {missing} is missing") from None
    return Payment(verb="ignore", event=str(event_id))


def _credit(event_id: str, intent: dict[str, Any]) -> Payment:
    tenant = (intent.get("metadata") or {}).get("tenant")
    if not tenant:  # a payment for something else
        return Payment(verb="ignore", event=event_id)
    amount, currency = intent["amount_received"], intent["currency"].upper()
    if not isinstance(amount, int) or amount <= 0:
        raise NotAnEvent("amount_received: expected a number above 0")
    scale: int = 10 ** (_NANO_DIGITS - _DIGITS.get(currency, 2))
    return Payment(
        verb="credit",
        event=event_id,
        tenant=str(tenant),
        amount_nano=amount * scale,
        currency=currency,
        reference=str(intent["id"]),
    )
