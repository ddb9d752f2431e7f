"""One Idempotency-Key is one request: while it runs, and after; nothing is made twice or replayed."""

import concurrent.futures

import httpx
import pytest

from tests.support.gateway import document, running


@pytest.fixture(params=["memory", "auto"])
def served(request, tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    with running(tmp_path / "data", store=request.param) as gateway:
        applied = gateway.apply(document(engine.url, limits={"requests_per_minute": 9}))
        headers = {"authorization": f"Bearer {applied['keys'][0]['secret']}"}
        with httpx.Client(base_url=gateway.base_url, headers=headers, timeout=20) as client:
            yield gateway, client, engine


def ask(client, key, **more):
    body = {"model": "llama", "prompt": "hi", "max_tokens": 40} | more
    return client.post("/completions", json=body, headers={"idempotency-key": key})


def test_of_many_at_once_one_is_made_and_the_others_name_it(served):
    gateway, client, _ = served
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client, "k1"), range(8)))

    (made,) = [each for each in answers if each.status_code == 200]
    refused = [each for each in answers if each is not made]
    first = made.headers["x-request-id"]
    for each in refused:
        assert (each.status_code, each.json()["error"]["code"]) == (409, "idempotency_key_used")
        assert each.headers["x-tf-first-request-id"] == first
        assert each.headers["x-should-retry"] == "false"
    assert ask(client, "k1", max_tokens=3).headers["x-tf-first-request-id"] == first
    assert ask(client, "k2").status_code == 200
    assert next(each["request_id"] for each in gateway.records_when(2)) == first


def test_a_request_that_no_engine_saw_gives_its_key_back(served):
    _, client, _ = served
    for number in range(9):
        assert ask(client, f"n{number}", max_tokens=1).status_code == 200
    assert ask(client, "late").status_code == 429
    assert ask(client, "late").status_code == 429, "refused by the limit again, not by the key"


def test_a_key_that_is_none_is_refused(served):
    _, client, _ = served
    refused = ask(client, "x" * 256)

    assert refused.status_code == 400
    assert "1 to 255" in refused.json()["error"]["message"]
