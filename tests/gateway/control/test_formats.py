"""What each receiver gets, byte for byte, and signatures that others can check."""

import base64
import hashlib
import hmac
import json
from urllib.parse import parse_qs

import pytest

from gateway.control.formats import (
    BadSecret,
    Form,
    NotSendable,
    has_already,
    is_busy,
    is_told,
    message,
    signature,
)
from gateway.events import CORRECTION, USAGE, Event

AT_MS = 1_800_000_000_123


def usage(event_id="r1", tenant="acme", **data):
    told = {"prompt_tokens": 10, "total_tokens": 13, "requests": 1, "charged": "0.0025",
            "price_version": None} | data  # fmt: skip
    return Event(id=event_id, type=USAGE, subject=tenant, time_ms=AT_MS, data=told)


def test_cloudevents_are_structured_alone_and_an_array_together():
    form = Form(format="cloudevents", source="fra-1", subjects={"acme": "cus_9"})
    one, two = message(form, [usage()]), message(form, [usage(), usage("r2", "zen")])

    assert (one.id, one.content_type) == ("r1", "application/cloudevents+json")
    event = json.loads(one.body)
    assert (event["specversion"], event["id"], event["source"]) == ("1.0", "r1", "fra-1")
    assert (event["type"], event["subject"]) == ("tokenfactory.usage.v1", "cus_9")
    assert event["time"] == "2027-01-15T08:00:00.123Z"
    assert event["data"]["charged"] == "0.0025"
    assert (two.id, two.content_type) == ("r1+1", "application/cloudevents-batch+json")
    assert [each["subject"] for each in json.loads(two.body)] == ["cus_9", "zen"]


def test_a_cloudevent_of_no_tenant_has_no_subject():
    event = json.loads(message(Form(format="cloudevents"), [usage(tenant="")]).body)
    assert "subject" not in event


def test_lago_gets_a_batch_of_events_with_the_exact_amount():
    form = Form(format="lago", event_name="tokens", subjects={"acme": "sub_1"})
    made = message(form, [usage(), usage("r2", "zen")])

    first, second = json.loads(made.body)["events"]
    assert first == {
        "transaction_id": "r1",
        "external_subscription_id": "sub_1",
        "code": "tokens",
        "timestamp": "1800000000.123",
        "precise_total_amount_cents": "0.25",
        "properties": {"prompt_tokens": 10, "total_tokens": 13, "requests": 1, "charged": "0.0025"},
    }
    assert second["external_subscription_id"] == "zen"
    alone = b'{"error_details": {"0": {"transaction_id": ["value_already_exist"]}}}'
    assert has_already(form, 422, alone)
    assert not has_already(form, 422, b'{"error_details": {"code": ["value_is_mandatory"]}}')


def test_stripe_gets_a_meter_event_of_a_known_customer():
    form = Form(format="stripe", event_name="tokens", subjects={"acme": "cus_1"})
    made = message(form, [usage()])

    assert made.content_type == "application/x-www-form-urlencoded"
    assert {name: value for name, (value,) in parse_qs(made.body.decode()).items()} == {
        "event_name": "tokens",
        "identifier": "r1",
        "timestamp": "1800000000",
        "payload[stripe_customer_id]": "cus_1",
        "payload[value]": "13",
    }
    with pytest.raises(NotSendable, match="tenant zen has no customer"):
        message(form, [usage(tenant="zen")])
    assert has_already(form, 400, b"An event already exists with identifier r1.")
    assert has_already(form, 400, b'{"error": {"code": "duplicate_meter_event", "message": "x"}}')
    assert not has_already(form, 400, b'{"error": {"message": "No such customer: cus_1"}}')


def test_stripes_409_is_of_the_moment_and_every_other_receivers_of_the_event():
    assert is_busy(Form(format="stripe"), 409)
    assert not is_busy(Form(format="stripe"), 400)
    assert not is_busy(Form(format="lago"), 409)


def test_stripe_hears_of_corrections_only_where_it_adds_up_money():
    correction = Event(
        id="reversal:r1:1", type=CORRECTION, subject="acme", time_ms=AT_MS,
        data={"charged": "-0.0025"},
    )  # fmt: skip
    tokens = Form(format="stripe", event_name="t", subjects={"acme": "cus_1"})
    money = Form(format="stripe", event_name="t", value="charged_nano", subjects={"acme": "cus_1"})

    assert not is_told(tokens, correction)
    assert is_told(money, correction)
    assert b"payload%5Bvalue%5D=-2500000" in message(money, [correction]).body
    assert is_told(Form(format="cloudevents"), correction)


def test_a_webhook_says_type_time_and_data():
    made = message(Form(format="webhook"), [usage()])
    assert json.loads(made.body) == {
        "type": USAGE,
        "timestamp": "2027-01-15T08:00:00.123Z",
        "data": usage().data,
    }


def verify(secret, headers, body):
    """Standard Webhooks' own recipe, as a receiver writes it."""
    key = base64.b64decode(secret.split("whsec_")[-1])
    text = headers["webhook-id"] + "." + headers["webhook-timestamp"] + "." + body.decode()
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    given = [each.split(",", 1)[1] for each in headers["webhook-signature"].split(" ")]
    return base64.b64encode(digest).decode() in given


@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_a_signature_is_verified_by_the_receivers_recipe(prefix):
    secret = prefix + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = dict(signature(secret, "e1", 1_800_000_000, b'{"a": 1}'))

    assert verify(secret, headers, b'{"a": 1}')
    assert not verify(secret, headers, b'{"a": 2}')


def test_the_example_of_the_specification_is_signed_alike():
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330,
        b'{"test": 2432232314}',
    )  # fmt: skip
    assert dict(signed)["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!"])
def test_a_secret_that_is_no_base64_is_said_without_it(secret):
    with pytest.raises(BadSecret) as wrong:
        signature(secret, "e1", 1, b"")
    assert "not base64!" not in str(wrong.value)
