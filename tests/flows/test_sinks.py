"""From a chat request to a receiver outside, through a control process that is killed in between."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx

from tests.flows.test_crashes import child_pids
from tests.gateway.control.test_formats import verify
from tests.support.gateway import document, running
from tests.support.receiver import Receiver
from tests.support.until import wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@contextlib.contextmanager
def outside(answer=lambda _request: 204):
    """A receiver in a thread of its own."""
    receiver, loop = Receiver(answer), asyncio.new_event_loop()
    loop.run_until_complete(receiver.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield receiver
    finally:
        asyncio.run_coroutine_threadsafe(receiver.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def chat(gateway, secret):
    response = httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        headers={"authorization": f"Bearer {secret}"},
        trust_env=False,
        timeout=10,
    )
    assert response.status_code == 200, response.text
    return response.headers["x-request-id"]


def test_a_request_is_told_once_though_control_is_killed_before_it_knows(tmp_path, engines):
    said = []

    def answer(_request):
        return said.pop(0) if said else 204

    engine = engines.start()
    with outside(answer) as receiver, running(tmp_path / "data") as gateway:
        file = document(engine.url) | {"sinks": [{"name": "meter", "url": receiver.url}]}
        secret = gateway.apply(file)["keys"][0]["secret"]
        ids = [chat(gateway, secret)]
        wait_until(lambda: len(receiver.kept) == 1, 10.0)
        told = receiver.events[0]
        assert (told["id"], told["subject"]) == (ids[0], "acme")
        assert told["data"]["completion_tokens"] == 3
        assert told["data"]["cost"] != "0"

        said.append("hang")
        ids.append(chat(gateway, secret))
        wait_until(lambda: len(receiver.requests) == 2, 10.0)  # sent, and not answered
        [control] = child_pids(gateway, "gateway.controlplane")
        os.kill(control, signal.SIGKILL)
        wait_until(lambda: len(receiver.kept) == 2, 15.0)

        assert receiver.requests[1].events[0]["id"] == receiver.events[1]["id"] == ids[1]

        said.append((422, {}, b"no such customer"))
        ids.append(chat(gateway, secret))
        wait_until(lambda: gateway.ask("GET", "/admin/v1/sinks/meter")["parked"] == 1, 10.0)
        shown = gateway.ask("GET", "/admin/v1/sinks/meter")
        [parked] = shown["parked_events"]
        assert (parked["id"], shown["delivered"], shown["state"]) == (ids[2], 2, "idle")
        assert gateway.ask("POST", "/admin/v1/sinks/meter/retry", {"events": [ids[2]]})
        wait_until(lambda: len(receiver.kept) == 3, 10.0)

    assert [event["id"] for event in receiver.events] == ids


@contextlib.contextmanager
def engine_process(port=0):
    """(process, its port) of a demo engine that can be killed."""
    command = [sys.executable, "-m", "gateway.demo", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            yield process, urlsplit(url).port
        finally:
            process.kill()


def test_an_engine_that_is_killed_is_told_as_down_once_and_as_up_when_it_is_back(tmp_path):
    (tmp_path / "secret").write_text(SECRET + "\n")
    with outside() as receiver, running(tmp_path / "data", store="memory") as gateway:
        with engine_process() as (process, port):
            url = f"http://127.0.0.1:{port}"
            webhook = {
                "name": "pager", "url": receiver.url, "secret_file": str(tmp_path / "secret"),
                "events": ["endpoint.down", "endpoint.up"],
            }  # fmt: skip
            secret = gateway.apply(document(url) | {"webhooks": [webhook]})["keys"][0]["secret"]
            chat(gateway, secret)
            wait_until(lambda: gateway.ask("GET", "/admin/v1/sinks/pager")["state"] == "idle", 10.0)
            time.sleep(1.5)  # a look at a healthy endpoint
            assert not receiver.kept
            process.kill()
            wait_until(lambda: receiver.kept, 20.0)
        with engine_process(port):
            wait_until(lambda: len(receiver.kept) == 2, 20.0)
            chat(gateway, secret)

    down, up = receiver.requests
    assert [each.json["type"] for each in (down, up)] == ["endpoint.down", "endpoint.up"]
    assert {each.json["data"]["endpoint"] for each in (down, up)} == {url}
    assert down.json["data"]["pool"] == "pool"
    ids = [each.headers["webhook-id"] for each in (down, up)]
    assert ids == ["endpoint_down:1:1", "endpoint_up:1:1"]
    assert all(verify(SECRET, each.headers, each.body) for each in (down, up))


def test_a_balance_that_falls_is_told_once_and_signed(tmp_path, engines):
    engine = engines.start()
    (tmp_path / "secret").write_text(SECRET + "\n")
    with outside() as receiver, running(tmp_path / "data") as gateway:
        file = document(engine.url) | {
            "webhooks": [
                {"name": "pager", "url": receiver.url, "secret_file": str(tmp_path / "secret"),
                 "events": ["balance.low"]}
            ]
        }  # fmt: skip
        file["models"][0]["price"] = {"input": "1000", "output": "1000"}
        file["tenants"][0] |= {"contract": {"kind": "prepaid"}, "low_balance": "4.99"}
        gateway.ask("POST", "/admin/v1/apply", {"document": file | {"webhooks": []}})
        gateway.ask(
            "POST", "/admin/v1/tenants/acme/credits", {"amount": "5", "reference": "wire-1"}
        )
        gateway.apply(file)
        secret = gateway.ask("POST", "/admin/v1/keys", {"path": "acme/chatbot/more"})["secret"]
        for _ in range(3):
            chat(gateway, secret)
        wait_until(lambda: receiver.kept, 10.0)
        chat(gateway, secret)
        time.sleep(2.5)  # two more looks

        [request] = receiver.requests
        said = request.json
        assert (said["type"], said["data"]["tenant"]) == ("balance.low", "acme")
        assert request.headers["webhook-id"] == "balance_low:1:1"
        assert verify(SECRET, request.headers, request.body)
        state = gateway.ask("GET", "/admin/v1/sinks/pager")
        assert (state["kind"], state["delivered"], state["parked"]) == ("webhook", 1, 0)
        assert SECRET not in gateway.log
