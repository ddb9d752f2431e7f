"""Error bodies and events as official clients read them."""

import json

import pytest

from gateway.contract.errors import (
    ContractError,
    LimitExceeded,
    ModelNotFound,
    Overdue,
    RequestTooLarge,
    UpstreamError,
    error_body,
    error_event,
)
from gateway.contract.sse import FrameSplitter
from gateway.contract.usage import error_in


def family(base=ContractError):
    return [base, *(leaf for child in base.__subclasses__() for leaf in family(child))]


def test_body_has_the_four_keys_in_order():
    body = error_body('say "no"', "invalid_request_error", None, "bad")

    assert body == (
        b'{"error":{"message":"say \\"no\\"","type":"invalid_request_error","param":null,"code":"bad"}}'
    )


def test_event_is_one_frame_that_our_own_reader_knows():
    event = error_event(UpstreamError())

    assert FrameSplitter().feed(event) == [event]
    error = json.loads(error_in(event))["error"]
    assert (error["type"], error["code"]) == ("server_error", "upstream_error")


def test_event_of_an_unknown_error_tells_nothing():
    event = error_event(ValueError("secret prompt"))

    assert b"secret" not in event
    assert b'"code":"server_error"' in event


@pytest.mark.parametrize("error", family(), ids=lambda error: error.__name__)
def test_every_error_has_a_status_and_a_type(error):
    types = ("invalid_request_error", "service_unavailable_error", "server_error")
    assert error.type in types or error.status == 429
    assert 400 <= error.status < 600


def test_limits_name_scope_numbers_and_wait():
    error = LimitExceeded("key acme/chatbot/ci", "tokens", 1000, 1020, 300, 1500)

    assert error.message == (
        "Rate limit reached for key acme/chatbot/ci on tokens per minute: Limit 1000, Used 1020, "
        "Requested 300. Please try again in 1.500s."
    )
    assert (error.type, error.code, error.status) == ("tokens", "rate_limit_exceeded", 429)
    assert LimitExceeded("tenant a", "concurrency", 2, 0, 1, 1000).type == "requests"


def test_what_never_fits_is_not_a_429():
    error = RequestTooLarge("tenant acme", "tokens", 100, 5000)

    assert (error.status, error.code, error.param) == (400, "request_too_large", "max_tokens")
    assert "tenant acme" in error.message


def test_a_model_not_allowed_and_one_unknown_are_the_same_bytes():
    assert ModelNotFound("a").message == ModelNotFound("a").message
    assert Overdue().status == 504
