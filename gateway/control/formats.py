"""Events in the form that each receiver takes: CloudEvents, Lago, Stripe, Standard Webhooks.

Pure: events in, bytes out. One request carries a batch where the receiver takes one. Which answer
means "I have that already" is the receiver's affair as well, and told here. Not here: when it is sent
(``gateway.control.deliveries``), what an answer means otherwise (``gateway.control.retries``).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from gateway.events import CORRECTION, Event, rfc3339
from quotas.money import decimal, parse_amount

Format = Literal["cloudevents", "lago", "stripe", "webhook"]
#: Events in one request, at most: ours, Lago's own bound, and one where a receiver takes one.
BATCH_MAX: dict[Format, int] = {"cloudevents": 1_000, "lago": 100, "stripe": 1, "webhook": 1}
_SECRET_PREFIX = "whsec_"  # noqa: S105 -- what a secret begins with, none itself
_CENTS = 100


class NotSendable(Exception):
    """The receiver has no place for this event; the message says what to declare."""


class BadSecret(Exception):
    """The signing secret cannot be used; the message does not hold it."""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How one sink's messages look. ``subjects``: what the receiver calls a tenant, where that is
    not the tenant's name. ``event_name``: Stripe's meter, Lago's billable metric. ``value``: the
    number that Stripe adds up.
    """

    format: Format
    source: str = "tokenfactory"
    event_name: str = ""
    value: str = "total_tokens"
    subjects: dict[str, str] = {}


class Message(msgspec.Struct, frozen=True):
    """``id`` is the event's, or of a batch made of its first and its size."""

    id: str
    content_type: str
    body: bytes


def is_told(form: Form, event: Event) -> bool:
    """Whether the receiver hears of such an event at all: a meter of tokens is not moved by what
    corrects a charge.
    """
    return form.format != "stripe" or event.type != CORRECTION or form.value == "charged_nano"


def message(form: Form, events: Sequence[Event]) -> Message:
    """One request's body. Raises ``NotSendable``."""
    if form.format == "cloudevents":
        content_type, body = _cloudevents(form, events)
    elif form.format == "lago":
        content_type, body = _lago(form, events)
    elif form.format == "stripe":
        content_type, body = _stripe(form, events[0])
    else:
        content_type, body = _webhook(events[0])
    first = events[0].id
    return Message(first if len(events) == 1 else f"{first}+{len(events) - 1}", content_type, body)


def has_already(form: Form, status: int, body: bytes) -> bool:
    """Whether an answer that is no success says that the event (one alone) came before: after a
    crash between a send and its note, it is sent again.
    """
    if form.format == "lago":
        return status == 422 and b"value_already_exist" in body  # noqa: PLR2004
    if form.format == "stripe":  # by its words today, by the code that its API names
        told = b"already exists with identifier" in body or b"duplicate_meter_event" in body
        return status == 400 and told  # noqa: PLR2004
    return False


def is_busy(form: Form, status: int) -> bool:
    """Whether an answer speaks of the moment, where another receiver would speak of the event: Stripe
    takes one call at a time for a customer and meter, and answers 409 to the second.

    https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api
    """
    return form.format == "stripe" and status == 409  # noqa: PLR2004


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> list[tuple[str, str]]:
    """The three headers of Standard Webhooks 1.0: HMAC-SHA256 over ``id.timestamp.body`` under the
    secret's bytes, which are base64 after an optional ``whsec_``. Raises ``BadSecret``.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise BadSecret("the signing secret: expected base64, with or without whsec_ before it")
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)
    made = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp_s)),
        ("webhook-signature", f"v1,{made}"),
    ]


def _cloudevents(form: Form, events: Sequence[Event]) -> tuple[str, bytes]:
    """Structured JSON, or a JSON batch. OpenMeter takes both as they are.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
    https://openmeter.io/docs/metering/events/usage-events
    """
    made = [_cloudevent(form, event) for event in events]
    if len(made) == 1:
        return "application/cloudevents+json", msgspec.json.encode(made[0])
    return "application/cloudevents-batch+json", msgspec.json.encode(made)


def _cloudevent(form: Form, event: Event) -> dict[str, Any]:
    made: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": form.source,
        "type": event.type,
        "time": rfc3339(event.time_ms),
        "datacontenttype": "application/json",
        "data": event.data,
    }
    if event.subject:  # it must not be empty where it is there
        made["subject"] = form.subjects.get(event.subject, event.subject)
    return made


def _lago(form: Form, events: Sequence[Event]) -> tuple[str, bytes]:
    """The body of ``POST /api/v1/events/batch``: Lago knows a ``transaction_id`` again, and takes
    a batch whole or, with 422, not at all. ``timestamp`` may be a decimal text.

    https://getlago.com/docs/api-reference/events/batch
    """
    made = [
        {
            "transaction_id": event.id,
            "external_subscription_id": form.subjects.get(event.subject, event.subject),
            "code": form.event_name,
            "timestamp": _seconds(event.time_ms),
            "precise_total_amount_cents": decimal(parse_amount(event.data["charged"]) * _CENTS),
            "properties": {name: value for name, value in event.data.items() if value is not None},
        }
        for event in events
    ]
    return "application/json", msgspec.json.encode({"events": made})


def _stripe(form: Form, event: Event) -> tuple[str, bytes]:
    """The form of ``POST /v1/billing/meter_events``, one event a request; Stripe knows an
    ``identifier`` again for at least a day, takes events of the last 35 days, and whole numbers only.

    https://docs.stripe.com/api/billing/meter-event/create
    """
    customer = form.subjects.get(event.subject)
    if customer is None:
        raise NotSendable(
            f"tenant {event.subject} has no customer: name one in subjects, or leave it out by tenants"
        )
    fields = {
        "event_name": form.event_name,
        "identifier": event.id,
        "timestamp": str(event.time_ms // 1000),
        "payload[stripe_customer_id]": customer,
        "payload[value]": str(_value(form, event)),
    }
    return "application/x-www-form-urlencoded", urlencode(fields).encode()


def _value(form: Form, event: Event) -> int:
    """A whole number: Stripe's meters take no fractions."""
    if form.value == "charged_nano":
        return parse_amount(event.data["charged"])
    return int(event.data.get(form.value, 0))


def _webhook(event: Event) -> tuple[str, bytes]:
    """Type, time and data, as Standard Webhooks recommends."""
    body = {"type": event.type, "timestamp": rfc3339(event.time_ms), "data": event.data}
    return "application/json", msgspec.json.encode(body)


def _seconds(unix_ms: int) -> str:
    """Unix seconds with three decimals, exactly."""
    return f"{unix_ms // 1000}.{unix_ms % 1000:03d}"
