"""Limits that all tenants share, through four processes: nobody gets more, whoever asks."""

import json
import time

import httpx
import pytest

from tests.flows.test_shared_limits import ask
from tests.support.gateway import document, running


@pytest.fixture
def four(tmp_path, engines):
    engine = engines.start(token_ms=0.0)
    with running(tmp_path / "data", processes=4) as gateway:
        declared = document(engine.url)
        other = json.loads(json.dumps(declared["tenants"][0])) | {"name": "other"}
        declared["tenants"].append(other)
        yield gateway, declared


def test_a_models_limit_is_one_for_all_tenants_and_names_itself(four):
    gateway, declared = four
    declared["models"][0]["limits"] = {"requests_per_minute": 40}
    first, second = (each["secret"] for each in gateway.apply(declared)["keys"])
    began = time.monotonic()
    responses = [each for secret in (first, second) for each in ask(gateway, secret, 60)]
    refilled = (time.monotonic() - began) * 40 / 60 + 1

    admitted = [each for each in responses if each.status_code == 200]
    refused = [each for each in responses if each.status_code == 429]
    assert len(admitted) + len(refused) == 120
    # Four processes hold at most a tenth unspent.
    assert 40 - 4 <= len(admitted) <= 40 + refilled
    error = refused[0].json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "model llama" in error["message"]
    assert int(refused[0].headers["retry-after-ms"]) > 0
    assert "x-ratelimit-limit-requests" not in admitted[0].headers  # of the caller's own limits

    said = json.loads(gateway.cli("explain", "acme/chatbot/ci", "llama", "--json"))
    row = next(each for each in said["limits"] if each["scope"] == "model llama")
    assert (row["name"], row["limit"]) == ("requests per minute", 40)
    assert row["used"] >= 36
    assert len(row["leases"]) == 4
    metrics = httpx.get(gateway.ready["control_url"] + "/metrics", trust_env=False).text
    assert 'tf_lease_draws_total{result="asked"}' in metrics
    assert "tf_processes_known 4.0" in metrics


def test_a_change_of_the_platforms_limit_is_in_force_within_a_second(four):
    gateway, declared = four
    secret = gateway.apply(declared)["keys"][0]["secret"]
    assert {each.status_code for each in ask(gateway, secret, 8)} == {200}
    gateway.cli("limits", "set", "@platform", "requests_per_minute=5")
    time.sleep(0.9)
    responses = ask(gateway, secret, 30)
    assert sum(each.status_code == 200 for each in responses) <= 5 + 3
    refused = next(each for each in responses if each.status_code == 429)
    assert "platform" in refused.json()["error"]["message"]
    gateway.cli("limits", "remove", "@platform", "requests_per_minute")
    time.sleep(0.9)
    assert {each.status_code for each in ask(gateway, secret, 8)} == {200}
