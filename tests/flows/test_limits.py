"""Limits as callers and operators meet them, through a whole gateway."""

import itertools
import time

import httpx
import pytest

from tests.flows.conftest import EngineThread
from tests.support.gateway import document, running

TENANTS = itertools.count(1)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One gateway for all: each test has a tenant of its own."""
    engines = EngineThread()
    try:
        engine = engines.start(token_ms=0.0)
        with running(tmp_path_factory.mktemp("limits") / "data") as gateway:
            yield gateway, engine
    finally:
        engines.close()


def post(gateway, secret, path="/chat/completions", **fields):
    body = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return httpx.post(
        gateway.base_url + path,
        json=body | fields,
        headers={"authorization": f"Bearer {secret}"},
        trust_env=False,
        timeout=20,
    )


def get(gateway, secret, path):
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.get(gateway.base_url + path, headers=headers, trust_env=False, timeout=20)


def applied(gateway, engine, limits):
    """A key of a new tenant: (its path, its secret)."""
    declared = document(engine.url, limits=limits)
    declared["tenants"][0]["name"] = f"t{next(TENANTS)}"
    key = gateway.apply(declared)["keys"][0]
    return key["path"], key["secret"]


def until_refused(gateway, secret, **fields):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        response = post(gateway, secret, **fields)
        if response.status_code != 200:
            return response
    raise AssertionError("never refused")


def test_every_answer_says_what_is_left_and_a_refusal_says_why_and_when(served):
    gateway, engine = served
    path, secret = applied(gateway, engine, {"requests_per_minute": 3, "tokens_per_day": 100_000})
    answered = post(gateway, secret)
    assert answered.headers["x-ratelimit-limit-requests"] == "3"
    assert answered.headers["x-ratelimit-remaining-requests"] == "2"
    assert answered.headers["x-ratelimit-limit-tokens"] == "100000"
    assert answered.headers["x-ratelimit-reset-tokens"].endswith("s")
    refused = until_refused(gateway, secret)

    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (
        429, "requests", "rate_limit_exceeded",
    )  # fmt: skip
    assert f"key {path} on requests per minute: Limit 3, Used 3, Requested 1" in (error["message"])
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_days_tokens_are_a_limit_of_their_own(served):
    gateway, engine = served
    _, secret = applied(gateway, engine, {"tokens_per_day": 60})
    refused = until_refused(gateway, secret)

    assert "tokens per day: Limit 60" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"  # a day is more than a minute's wait


def test_output_and_input_are_limited_apart(served):
    gateway, engine = served
    _, secret = applied(gateway, engine, {"output_tokens_per_minute": 8})
    assert post(gateway, secret, max_tokens=4).status_code == 200
    too_large = post(gateway, secret, max_tokens=9)
    assert too_large.json()["error"]["code"] == "request_too_large"
    assert "output tokens" in too_large.json()["error"]["message"]
    assert "output tokens" in until_refused(gateway, secret).json()["error"]["message"]


def test_a_shadow_limit_is_counted_and_refuses_nothing(served):
    gateway, engine = served
    _, secret = applied(gateway, engine, {"requests_per_minute": {"limit": 1, "shadow": True}})
    assert [post(gateway, secret).status_code for _ in range(4)] == [200] * 4

    wanted = 'tf_shadow_refusals_total{dimension="requests",scope="key"} 3.0'
    until = time.monotonic() + 5
    metrics = ""
    while wanted not in metrics and time.monotonic() < until:
        time.sleep(0.1)
        metrics = httpx.get(gateway.ready["control_url"] + "/metrics", trust_env=False).text
    assert wanted in metrics


def test_each_end_user_and_each_model_has_its_own_limit(served):
    gateway, engine = served
    path, secret = applied(
        gateway, engine,
        {"end_user": {"requests_per_minute": 1}, "models": {"llama": {"requests_per_minute": 5}}},
    )  # fmt: skip
    assert post(gateway, secret, user="ann").status_code == 200
    refused = post(gateway, secret, user="ann")
    assert f"end user of key {path}" in refused.json()["error"]["message"]
    assert post(gateway, secret, user="bob").status_code == 200
    assert post(gateway, secret, safety_identifier="cleo", user="ann").status_code == 200
    on_model = until_refused(gateway, secret)
    assert f"key {path} on model llama" in on_model.json()["error"]["message"]


def test_a_change_by_command_is_in_force_within_a_second_and_forgets_nothing(served):
    gateway, engine = served
    path, secret = applied(gateway, engine, {"requests_per_minute": 2})
    until_refused(gateway, secret)
    gateway.cli("limits", "set", path, "requests_per_minute=4")
    time.sleep(0.9)
    codes = [post(gateway, secret).status_code for _ in range(4)]

    assert codes.count(200) <= 1  # what was used stays used
    gateway.cli("limits", "remove", path, "requests_per_minute")
    time.sleep(0.9)
    assert post(gateway, secret).status_code == 200


def test_operators_and_developers_are_told_why(served):
    gateway, engine = served
    path, secret = applied(gateway, engine, {"requests_per_minute": 2, "tokens_per_minute": 10_000})
    until_refused(gateway, secret)

    said = gateway.cli("explain", path, "llama", "--tokens", "500")
    assert f"would be refused by key {path}: requests per minute: fits in" in said
    assert "last refusals" in said
    own = get(gateway, secret, "/key").json()
    limits = {each["name"]: each for each in own["limits"]}
    assert limits["requests per minute"]["remaining"] == 0
    assert limits["tokens per minute"]["limit"] == 10_000
    assert own["refusals"][0]["dimension"] == "requests"
    assert get(gateway, "tf_live_wrong", "/key").status_code == 401


def test_a_storm_is_refused_without_the_store(served):
    gateway, engine = served
    _, secret = applied(gateway, engine, {"requests_per_minute": 1})
    until_refused(gateway, secret)
    refused = [post(gateway, secret) for _ in range(20)]

    waits = [int(each.headers["retry-after-ms"]) for each in refused]
    assert {each.status_code for each in refused} == {429}
    assert waits == sorted(waits, reverse=True)
    assert all("x-ratelimit-limit-requests" in each.headers for each in refused)


def test_a_budget_is_never_overspent_and_says_that_it_is_spent(served):
    gateway, engine = served
    path, secret = applied(
        gateway, engine, {"budget_per_month": "0.000020", "concurrent_requests": 9}
    )
    gateway.cli("limits", "show", path)
    refused = until_refused(gateway, secret)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (
        429, "insufficient_quota", "insufficient_quota",
    ), error  # fmt: skip
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert f"The budget of key {path} per month is spent: Limit 0.00002 USD" in error["message"]
    said = get(gateway, secret, "/key").json()
    budget = next(each for each in said["limits"] if each["name"] == "money per month")
    assert 0 < float(budget["used"]) <= 0.00002
    pictures = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    too_large = post(gateway, secret, messages=pictures)
    assert too_large.json()["error"]["code"] == "request_too_large"


def test_a_budget_counts_what_was_spent_before_a_restart(tmp_path, engines):
    engine = engines.start(token_ms=0.0)
    declared = document(engine.url, limits={"budget_lifetime": "0.000030"})
    with running(tmp_path / "data", store="memory") as gateway:
        secret = gateway.apply(declared)["keys"][0]["secret"]
        assert post(gateway, secret).status_code == 200
        before = get(gateway, secret, "/key").json()["limits"][0]["used"]
    with running(tmp_path / "data", store="memory") as gateway:
        until = time.monotonic() + 10
        while post(gateway, secret).status_code == 503 and time.monotonic() < until:
            time.sleep(0.1)
        after = get(gateway, secret, "/key").json()["limits"][0]["used"]

        assert float(after) >= 2 * float(before) - 0.000002 > 0
        assert until_refused(gateway, secret).json()["error"]["code"] == "insufficient_quota"
