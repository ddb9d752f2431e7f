"""Engines that do not count: what they said is counted by their own tokenizer, after the end."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from gateway.demo.text import MESSAGE_TOKENS, TEMPLATE_TOKENS, count
from tests.support.gateway import document, processes_of, running

WORDS = "count these words for me please"
BODY = {"model": "llama", "messages": [{"role": "user", "content": WORDS}], "max_tokens": 12}
PROMPT = TEMPLATE_TOKENS + MESSAGE_TOKENS + count(WORDS)


@contextlib.contextmanager
def serving(tmp_path, url, *, usage="none", **settings):
    wanted = document(url)
    wanted["pools"][0]["endpoints"][0]["usage"] = usage
    with running(tmp_path / "data", **settings) as gateway:
        secret = gateway.apply(wanted)["keys"][0]["secret"]
        with httpx.Client(
            base_url=gateway.base_url,
            headers={"authorization": f"Bearer {secret}"},
            timeout=20,
            trust_env=False,
        ) as client:
            yield gateway, client


def counts(record):
    return record["prompt_tokens"], record["completion_tokens"], record["source"]


def text_of(lines):
    said = ""
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                said += choice["delta"].get("content") or ""
    return said


def test_answers_without_usage_are_counted_by_the_engines_tokenizer(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    engine.faults.no_usage = True
    with serving(tmp_path, engine.url) as (gateway, client):
        unary = client.post("/chat/completions", json=BODY).json()
        gateway.records_when(1)
        with client.stream("POST", "/chat/completions", json={**BODY, "stream": True}) as response:
            said = text_of(response.iter_lines())
        records = gateway.records_when(2)

    whole = unary["choices"][0]["message"]["content"]
    assert [counts(each) for each in records] == [
        (PROMPT, count(whole), "tokenized"),
        (PROMPT, count(said), "tokenized"),
    ]
    assert {each["outcome"] for each in records} == {"ok"}


def test_a_client_that_leaves_before_the_first_token_pays_the_prompt_as_counted(tmp_path, engines):
    engine = engines.start(token_ms=100.0)
    with serving(tmp_path, engine.url, usage="auto") as (gateway, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/chat/completions", json=BODY, timeout=0.3)
        [record] = gateway.records_when(1)

    assert counts(record) == (PROMPT, 0, "tokenized")
    assert record["outcome"] == "client_abort"


def test_a_client_that_leaves_in_the_middle_pays_what_was_said(tmp_path, engines):
    engine = engines.start(token_ms=20.0)
    with serving(tmp_path, engine.url, usage="final") as (gateway, client):
        long = {**BODY, "stream": True, "max_tokens": 500}
        with client.stream("POST", "/chat/completions", json=long) as response:
            lines = response.iter_lines()
            said = text_of(next(lines) for _ in range(16))
        [record] = gateway.records_when(1)

    prompt, completion, source = counts(record)
    assert (prompt, source) == (PROMPT, "tokenized")
    # The gateway may have had a few frames more than this client read.
    assert count(said) <= completion <= count(said) + 30


def test_an_engine_that_cannot_be_asked_leaves_an_estimate(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    engine.faults.no_usage = True
    engine.faults.no_tokenize = True
    with serving(tmp_path, engine.url) as (gateway, client):
        client.post("/chat/completions", json=BODY)
        [record] = gateway.records_when(1)

    assert record["source"] == "estimated"
    assert record["prompt_tokens"] > 0


def test_a_gateway_killed_while_it_asks_records_the_estimate_once(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    engine.faults.no_usage = True
    engine.faults.tokenize_delay_s = 1.5
    with serving(tmp_path, engine.url) as (gateway, client):
        [pid] = data_processes(tmp_path / "data")
        client.post("/chat/completions", json=BODY)
        time.sleep(0.2)  # the answer is out before the ending is noted
        os.kill(pid, signal.SIGKILL)
        [record] = gateway.records_when(1)
        time.sleep(0.5)
        assert len(gateway.records()) == 1

    assert (record["outcome"], record["source"]) == ("ok", "estimated")


def data_processes(data_dir):
    found = []
    for pid in processes_of(data_dir):
        with contextlib.suppress(OSError):
            if b"gateway.dataplane" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_stop_while_it_asks_waits_and_leaves_nothing_unsettled(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    engine.faults.no_usage = True
    engine.faults.tokenize_delay_s = 0.5
    with serving(tmp_path, engine.url) as (gateway, client):
        client.post("/chat/completions", json=BODY)
        assert gateway.stop() == 0
        [record] = gateway.records()
        assert "unacknowledged" not in gateway.log

    assert counts(record)[::2] == (PROMPT, "tokenized")


def test_endings_that_bill_nothing_are_bounded_per_key(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    with serving(tmp_path, engine.url, unbilled_endings_per_minute=3) as (_, client):
        wrong = {**BODY, "temperature": -3}
        said = [client.post("/chat/completions", json=wrong).status_code for _ in range(3)]
        refused = client.post("/chat/completions", json=BODY)

    assert said == [400] * 3
    assert refused.status_code == 429
    assert "unbilled endings" in refused.json()["error"]["message"]
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
