"""What a key may look up about itself on the data port, while control is there and while it is not."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import httpx

from tests.support.gateway import document, processes_of, running
from tests.support.until import wait_until

BODY = {"model": "llama", "messages": [{"role": "user", "content": "count"}], "max_tokens": 3}


def counted(client):
    return sum(row["requests"] for row in client.get("/usage").json()["data"])


def client_of(gateway, secret):
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.Client(base_url=gateway.base_url, headers=headers, timeout=20, trust_env=False)


def test_a_generation_is_told_to_its_own_key_alone(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    wanted = document(engine.url)
    wanted["tenants"][0]["projects"][0]["keys"].append({"name": "other"})
    with running(tmp_path / "data") as gateway:
        keys = gateway.apply(wanted)["keys"]
        with (
            client_of(gateway, keys[0]["secret"]) as mine,
            client_of(gateway, keys[1]["secret"]) as other,
        ):
            said = mine.post("/chat/completions", json=BODY)
            asked = {"id": said.headers["x-request-id"]}
            found = mine.get("/generation", params=asked)
            as_answered = mine.get("/generation", params={"id": said.json()["id"]})

            assert found.status_code == 200
            assert found.json() == as_answered.json()
            assert found.json()["usage"]["total_tokens"] == said.json()["usage"]["total_tokens"]
            assert found.json()["outcome"] == "ok"
            assert engine.url not in found.text
            assert other.get("/generation", params=asked).status_code == 404
            assert mine.get("/generation").json()["error"]["param"] == "id"
            assert mine.post("/generation", params=asked).status_code == 404
            strange = mine.get("/generation", params=asked, headers={"authorization": "Bearer x"})
            assert strange.status_code == 401


def test_usage_of_a_project_is_told_to_its_keys_and_summed_for_the_operator(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    wanted = document(engine.url)
    wanted["tenants"][0]["projects"].append({"name": "strange", "keys": [{"name": "k"}]})
    with running(tmp_path / "data") as gateway:
        keys = gateway.apply(wanted)["keys"]
        with (
            client_of(gateway, keys[0]["secret"]) as mine,
            client_of(gateway, keys[-1]["secret"]) as strange,
        ):
            tokens = [mine.post("/chat/completions", json=BODY).json()["usage"] for _ in range(2)]
            wait_until(lambda: counted(mine) == 2)
            (row,) = mine.get("/usage", params={"by": "key,model,hour"}).json()["data"]
            assert row["prompt_tokens"] == sum(each["prompt_tokens"] for each in tokens)
            assert row["completion_tokens"] == sum(each["completion_tokens"] for each in tokens)
            assert strange.get("/usage").json()["data"] == []
            refused = mine.get("/usage", params={"by": "tenant"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "by")
            assert mine.post("/usage").status_code == 404
        summed = json.loads(gateway.cli("usage", "--by", "key", "--by", "day", "--json"))
        assert [each["requests"] for each in summed] == [2]
        assert gateway.cli("usage", "--check") == "the sums are the ledger's\n"


def test_a_look_up_while_control_is_away_is_a_503_and_inference_goes_on(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    with running(tmp_path / "data") as gateway:
        secret = gateway.apply(document(engine.url))["keys"][0]["secret"]
        with client_of(gateway, secret) as client:
            said = client.post("/chat/completions", json=BODY)
            asked = {"id": said.headers["x-request-id"]}
            control = control_of(tmp_path / "data")
            os.kill(control, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                slow = client.get("/generation", params=asked)
                waited = time.monotonic() - begun
                served = client.post("/chat/completions", json=BODY)
            finally:
                os.kill(control, signal.SIGCONT)
            found = client.get("/generation", params=asked)

    assert slow.status_code == 503
    assert slow.headers["retry-after"] == "1"
    assert 1.5 < waited < 4
    assert served.status_code == 200
    assert found.status_code == 200


def control_of(data_dir):
    for pid in processes_of(data_dir):
        with contextlib.suppress(OSError):
            if b"gateway.controlplane" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise AssertionError("no control process")
