"""Engines' own counters are explained by the records, and a counter that lies is caught."""

import json
import os
import signal

import httpx
import pytest

from tests.flows.test_crashes import auth, begin, finish
from tests.support.gateway import document, processes_of, running
from tests.support.until import wait_until

MESSAGES = [{"role": "user", "content": "count these words for me"}]
CHAT = {"model": "llama", "messages": MESSAGES, "max_tokens": 5}


pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def engine(engines):
    return engines.start(token_ms=1.0)


def ask_all(gateway, secret):
    """Answers of every kind, all of them whole."""
    with httpx.Client(base_url=gateway.base_url, timeout=20, trust_env=False) as client:
        for path, body in (
            ("/chat/completions", CHAT),
            ("/chat/completions", {**CHAT, "n": 3}),
            ("/chat/completions", {**CHAT, "n": 2, "stream": True}),
            ("/completions", {"model": "llama", "prompt": ["one", "two words"], "max_tokens": 3}),
            ("/embeddings", {"model": "llama", "input": ["a", "b"]}),
            ("/chat/completions", {**CHAT, "temperature": -1}),
        ):
            assert client.post(path, json=body, headers=auth(secret)).status_code in (200, 400)


def begun(gateway):
    """From here on it is counted: the first reconciliation has nothing to compare with."""
    wait_until(lambda: reconcile(gateway), 60)


def asked(gateway, path, body=None):
    """As the commands ask a live server."""
    response = httpx.post(
        gateway.ready["control_url"] + path,
        json=body,
        headers=auth(gateway.ready["operator_token"]),
        timeout=60,
        trust_env=False,
    )
    return response.raise_for_status().json()


def reconcile(gateway):
    return asked(gateway, "/admin/v1/reconciliations")["data"]


def looked_at(engine):
    """Its counters of now are known: of more scrapes, one begun after now has been read."""
    seen = engine.scrapes
    wait_until(lambda: engine.scrapes >= seen + 3, 30)


def metrics(gateway):
    return httpx.get(gateway.ready["control_url"] + "/metrics", trust_env=False).text


def test_every_token_of_an_engine_is_explained_and_one_too_many_is_not(tmp_path, engine):
    with running(tmp_path / "data") as gateway:
        declared = {"document": document(engine.url), "file": "a test"}
        secret = asked(gateway, "/admin/v1/apply", declared)["keys"][0]["secret"]
        begun(gateway)  # at once: before anybody has looked at the engine
        ask_all(gateway, secret)
        looked_at(engine)
        [report] = reconcile(gateway)

        assert report["exact"]
        assert report["attempts"] == 6
        assert report["engine_prompt"] == report["prompt"]["low"] == report["prompt"]["high"]
        assert report["engine_generation"] == report["generation"]["high"] == 5 * 6 + 6
        assert (report["difference_prompt"], report["difference_generation"]) == (0, 0)

        engine.generation_tokens += 1
        looked_at(engine)
        [lie] = json.loads(gateway.cli("reconcile", "--json", code=1))
        assert (lie["difference_prompt"], lie["difference_generation"]) == (0, 1)
        name = f'tf_reconcile_difference_tokens{{endpoint="{engine.url}",kind="generation"}}'
        assert f"{name} 1.0" in metrics(gateway)
        assert "no record explains" in gateway.log
        said = gateway.cli("reconcile", "--history", "2")
        assert said.count(engine.url) == 2


def test_a_command_without_a_server_ships_recovers_and_names_what_was_cut_short(tmp_path, engines):
    slow = engines.start(token_ms=10.0)
    with running(tmp_path / "data") as gateway, httpx.Client(timeout=60, trust_env=False) as client:
        secret = gateway.apply(document(slow.url))["keys"][0]["secret"]
        begun(gateway)
        ask_all(gateway, secret)
        context, _ = begin(client, gateway, secret)
        context.__exit__(None, None, None)
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                gateway.base_url + "/chat/completions",
                json={**CHAT, "max_tokens": 500},
                headers=auth(secret),
                timeout=0.2,
            )
        context, lines = begin(client, gateway, secret)
        pids = processes_of(gateway.data_dir)
        for how in (signal.SIGSTOP, signal.SIGKILL):  # at once: none may end another's streams
            for pid in pids:
                os.kill(pid, how)
        finish(context, lines)
        gateway.stop(signal.SIGKILL)
        wait_until(lambda: not processes_of(gateway.data_dir), 20)

        [report] = json.loads(gateway.cli("reconcile", "--json"))
        assert (report["difference_prompt"], report["difference_generation"]) == (0, 0)
        reasons = sorted(each["reason"] for each in report["explained_by"])
        assert reasons == ["client_abort", "client_abort", "gateway_crash"]
        assert report["generation"]["low"] <= report["engine_generation"]
        assert len(gateway.records()) == 9
        assert "gateway_crash" in gateway.cli("reconcile", "--requests", "--history", "1")
