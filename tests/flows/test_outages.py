"""The store stops for three seconds: limits that may be shared go on, money does not."""

import os
import signal
import time
from pathlib import Path

import httpx

from tests.support.gateway import document, processes_of, running

OUTAGE_S = 3.0


def post(http, secret):
    body = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    began = time.monotonic()
    headers = {"authorization": f"Bearer {secret}"}
    response = http.post("/v1/chat/completions", json=body, headers=headers)
    return response, time.monotonic() - began


def valkey_of(data_dir):
    """The store's own process."""
    return next(
        pid
        for pid in processes_of(data_dir)
        if b"valkey-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_a_stopped_store_costs_no_rate_and_no_money(tmp_path, engines):
    engine = engines.start(token_ms=0.0)
    declared = document(engine.url, limits={"requests_per_minute": {"limit": 600, "burst": 20}})
    declared["tenants"][0]["projects"][0]["keys"].append(
        {"name": "paid", "limits": {"budget_per_day": "1.00"}}
    )
    with running(tmp_path / "data") as gateway:
        rated, paid = (each["secret"] for each in gateway.apply(declared)["keys"])
        base_url = gateway.base_url.removesuffix("/v1")
        with httpx.Client(base_url=base_url, trust_env=False, timeout=20) as http:
            began = time.monotonic()
            assert post(http, rated)[0].status_code == 200
            assert post(http, paid)[0].status_code == 200
            store = valkey_of(tmp_path / "data")
            os.kill(store, signal.SIGSTOP)
            admitted = slow = asked = 0
            try:
                until = time.monotonic() + OUTAGE_S
                while time.monotonic() < until:
                    response, took_s = post(http, rated)
                    asked += 1
                    admitted += response.status_code == 200
                    slow += took_s > 0.4
                    assert response.status_code in (200, 429), response.text
                    time.sleep(0.02)
                assert post(http, paid)[0].status_code == 503
            finally:
                os.kill(store, signal.SIGCONT)
            assert admitted > 5
            assert slow <= max(2, asked // 20)
            until = time.monotonic() + 5
            while post(http, paid)[0].status_code != 200:
                assert time.monotonic() < until, "money did not come back within 5 s"
                time.sleep(0.1)
            for _ in range(60):
                admitted += post(http, rated)[0].status_code == 200
            assert 1 + admitted <= 20 + 1.1 * 10 * (time.monotonic() - began)
