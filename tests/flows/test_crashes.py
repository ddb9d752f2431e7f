"""kill -9 of anything loses no record and doubles none."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import Gateway, document, processes_of, running

BODY = {
    "model": "llama",
    "messages": [{"role": "user", "content": "count"}],
    "max_tokens": 2000,
    "stream": True,
}


def child_pids(gateway: Gateway, module: str) -> list[int]:
    return [
        pid
        for pid in processes_of(gateway.data_dir)
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.fixture
def slow(engines):
    return engines.start(token_ms=10.0)


def auth(secret):
    return {"authorization": f"Bearer {secret}"}


def begin(client, gateway, secret, frames=5):
    """A stream that has delivered a few frames, left open."""
    context = client.stream(
        "POST", gateway.base_url + "/chat/completions", json=BODY, headers=auth(secret)
    )
    response = context.__enter__()
    lines = response.iter_lines()
    seen = 0
    while seen < frames:
        seen += next(lines).startswith("data: ")
    return context, lines


def finish(context, lines):
    with pytest.raises(httpx.HTTPError):
        list(lines)
    context.__exit__(None, None, None)


def test_killed_data_process_is_replaced_and_its_requests_are_recorded(tmp_path, slow):
    with running(tmp_path / "data") as gateway, httpx.Client(timeout=20, trust_env=False) as client:
        secret = gateway.apply(document(slow.url))["keys"][0]["secret"]
        context, lines = begin(client, gateway, secret)
        [pid] = child_pids(gateway, "gateway.dataplane")
        os.kill(pid, signal.SIGKILL)
        finish(context, lines)

        again = client.post(
            gateway.base_url + "/chat/completions",
            json={**BODY, "stream": False, "max_tokens": 2},
            headers=auth(secret),
        )
        assert again.status_code == 200
        records = gateway.records_when(2, within_s=10)

    outcomes = {record["outcome"]: record for record in records}
    assert sorted(outcomes) == ["gateway_crash", "ok"]
    assert len(records) == 2
    assert outcomes["gateway_crash"]["completion_tokens"] >= 3
    assert outcomes["gateway_crash"]["source"] == "engine_partial"


def test_records_are_read_with_everything_killed(tmp_path, slow):
    gateway = Gateway(tmp_path / "data").start()
    try:
        with httpx.Client(timeout=20, trust_env=False) as client:
            secret = gateway.apply(document(slow.url))["keys"][0]["secret"]
            for _ in range(3):
                client.post(
                    gateway.base_url + "/chat/completions",
                    json={**BODY, "stream": False, "max_tokens": 2},
                    headers=auth(secret),
                )
            context, lines = begin(client, gateway, secret)
            # All at once: a supervisor seen dead would end the streams in order.
            for how in (signal.SIGSTOP, signal.SIGKILL):
                for pid in processes_of(gateway.data_dir):
                    os.kill(pid, how)
            finish(context, lines)
    finally:
        gateway.stop(signal.SIGKILL)
    records = gateway.records()

    assert sorted(record["outcome"] for record in records) == ["gateway_crash", "ok", "ok", "ok"]
    assert len({record["request_id"] for record in records}) == 4
    assert gateway.records() == records


def test_killed_supervisor_leaves_no_process_and_the_next_start_is_clean(tmp_path, slow):
    gateway = Gateway(tmp_path / "data").start()
    secret = gateway.apply(document(slow.url))["keys"][0]["secret"]
    gateway.stop(signal.SIGKILL)
    until = time.monotonic() + 2.5
    while processes_of(gateway.data_dir) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(gateway.data_dir) == []

    with running(tmp_path / "data") as again:
        response = httpx.get(again.base_url + "/models", headers=auth(secret), trust_env=False)
        assert response.status_code == 200


def test_inference_goes_on_while_control_is_away(tmp_path, slow):
    with running(tmp_path / "data") as gateway:
        secret = gateway.apply(document(slow.url))["keys"][0]["secret"]
        [pid] = child_pids(gateway, "gateway.controlplane")
        os.kill(pid, signal.SIGSTOP)
        try:
            response = httpx.post(
                gateway.base_url + "/chat/completions",
                json={**BODY, "stream": False, "max_tokens": 2},
                headers=auth(secret),
                trust_env=False,
                timeout=10,
            )
        finally:
            os.kill(pid, signal.SIGKILL)
        assert response.status_code == 200
        until = time.monotonic() + 10
        while child_pids(gateway, "gateway.controlplane") in ([], [pid]):
            assert time.monotonic() < until
            time.sleep(0.05)
        [record] = gateway.records_when(1, within_s=10)

    assert record["outcome"] == "ok"
