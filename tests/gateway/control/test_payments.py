"""Stripe's events: signed ones are read, others are not believed."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from gateway.control.payments import (
    NotAnEvent,
    NotSigned,
    Payment,
    check_signature,
    payment_of,
)

SECRET = "whsec_test"
NOW_S = 1_800_000_000
BODY = b'{"id": "evt_1"}'


def signed(body: bytes = BODY, secret: str = SECRET, at_s: int = NOW_S) -> str:
    signature = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={signature}"


def event(kind: str = "payment_intent.succeeded", **what: Any) -> bytes:
    intent = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount_received": 2_500,
        "currency": "usd",
        "metadata": {"tenant": "acme"},
    }
    return json.dumps({"id": "evt_1", "type": kind, "data": {"object": intent | what}}).encode()


def test_a_signature_of_ours_is_believed():
    check_signature(signed(), BODY, SECRET, NOW_S + 299)


def test_one_of_two_signatures_is_enough_while_a_secret_is_rolled_over():
    old = signed(secret="whsec_old").partition(",")[2]
    check_signature(f"{signed()},{old},v0=abc", BODY, SECRET, NOW_S)


@pytest.mark.parametrize(
    ("header", "body", "now_s"),
    [
        ("", BODY, NOW_S),
        ("t=,v1=", BODY, NOW_S),
        (f"t={NOW_S}", BODY, NOW_S),
        (signed(), BODY + b" ", NOW_S),
        (signed(secret="other"), BODY, NOW_S),
        (signed(), BODY, NOW_S + 301),
        (signed(), BODY, NOW_S - 301),
        (signed().replace("v1=", "v0="), BODY, NOW_S),
        (signed().replace(f"t={NOW_S}", f"t={NOW_S + 1}"), BODY, NOW_S),
        ("t=٣,v1=é", BODY, NOW_S),
    ],
)
def test_anything_else_is_not(header, body, now_s):
    with pytest.raises(NotSigned):
        check_signature(header, body, SECRET, now_s)


def test_a_payment_becomes_a_credit_to_the_nano():
    assert payment_of(event()) == Payment(
        verb="credit",
        event="evt_1",
        tenant="acme",
        amount_nano=25_000_000_000,
        currency="USD",
        reference="pi_1",
    )


@pytest.mark.parametrize(("currency", "nano"), [("jpy", 2_500 * 10**9), ("kwd", 2_500 * 10**6)])
def test_currencies_have_their_own_smallest_unit(currency, nano):
    assert payment_of(event(currency=currency)).amount_nano == nano


def test_a_refund_in_full_takes_the_credit_back():
    refund = event("charge.refunded", id="ch_1", payment_intent="pi_1", refunded=True)

    assert (payment_of(refund).verb, payment_of(refund).reference) == ("reverse", "pi_1")


@pytest.mark.parametrize(
    "body",
    [
        event("customer.created"),
        event(metadata={}),
        event(metadata=None),
        event("charge.refunded", payment_intent="pi_1", refunded=False),
    ],
)
def test_what_is_not_for_us_is_ignored(body):
    assert payment_of(body).verb == "ignore"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", event(amount_received="25"), event(amount_received=-1), event(currency=3)],
)
def test_what_cannot_be_read_is_said_so(body):
    with pytest.raises(NotAnEvent):
        payment_of(body)
