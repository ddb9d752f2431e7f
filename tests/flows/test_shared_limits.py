"""Four data processes over one Valkey: a key's limit is one limit, a revocation reaches them all."""

import concurrent.futures
import time

import httpx
import pytest

from tests.support.gateway import Gateway, document, running

BODY = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture
def four(tmp_path, engines):
    engine = engines.start(token_ms=0.0)
    with running(tmp_path / "data", processes=4) as gateway:
        yield gateway, engine


def ask(gateway, secret, count):
    """Each request on a connection of its own, so that the kernel spreads them."""

    def one(_):
        return httpx.post(
            gateway.base_url + "/chat/completions",
            json=BODY,
            headers={"authorization": f"Bearer {secret}", "connection": "close"},
            trust_env=False,
            timeout=20,
        )

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, range(count)))


def test_one_keys_limit_is_one_limit_and_names_itself(four):
    gateway, engine = four
    applied = gateway.apply(document(engine.url, limits={"requests_per_minute": 20}))
    secret = applied["keys"][0]["secret"]
    began = time.monotonic()
    responses = ask(gateway, secret, 60)
    refilled = (time.monotonic() - began) * 20 / 60 + 1

    admitted = [each for each in responses if each.status_code == 200]
    refused = [each for each in responses if each.status_code == 429]
    assert len(admitted) + len(refused) == 60
    assert 20 <= len(admitted) <= 20 + refilled
    error = refused[0].json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "key acme/chatbot/ci" in error["message"]
    assert 0 < int(refused[0].headers["retry-after-ms"]) <= 3_000
    assert refused[0].headers["x-ratelimit-limit-requests"] == "20"


def test_all_processes_serve(four):
    gateway, engine = four
    secret = gateway.apply(document(engine.url))["keys"][0]["secret"]
    assert {each.status_code for each in ask(gateway, secret, 40)} == {200}

    metrics = httpx.get(gateway.ready["control_url"] + "/metrics", trust_env=False).text
    until = time.monotonic() + 5
    while 'tf_responses_total{status="200"} 40.0' not in metrics and time.monotonic() < until:
        time.sleep(0.1)
        metrics = httpx.get(gateway.ready["control_url"] + "/metrics", trust_env=False).text
    assert 'tf_responses_total{status="200"} 40.0' in metrics


def test_revocation_reaches_every_process_within_a_second(four):
    gateway, engine = four
    secret = gateway.apply(document(engine.url))["keys"][0]["secret"]
    assert {each.status_code for each in ask(gateway, secret, 16)} == {200}
    gateway.cli("keys", "revoke", "acme/chatbot/ci")
    time.sleep(0.9)

    assert {each.status_code for each in ask(gateway, secret, 32)} == {401}


def test_limit_change_is_obeyed_without_resetting_what_was_used(four):
    gateway, engine = four
    applied = gateway.apply(document(engine.url, limits={"requests_per_minute": 20}))
    secret = applied["keys"][0]["secret"]
    ask(gateway, secret, 30)
    gateway.apply(document(engine.url, limits={"requests_per_minute": 25}))
    time.sleep(0.9)
    responses = ask(gateway, secret, 20)

    admitted = sum(each.status_code == 200 for each in responses)
    assert admitted <= 8
    refused = next(each for each in responses if each.status_code == 429)
    assert refused.headers["x-ratelimit-limit-requests"] == "25"


def test_more_than_one_process_without_a_shared_store_refuses_to_start(tmp_path):
    gateway = Gateway(tmp_path / "data", processes=2, store="memory")
    gateway.cli("serve", code=2)
