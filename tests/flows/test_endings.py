"""However a request ends, it leaves one record that says what the engine counted."""

import json
import socket
import time

import httpx
import openai
import pytest

from tests.support.gateway import document, running

BODY = {"model": "llama", "messages": [{"role": "user", "content": "count"}], "max_tokens": 200}


@pytest.fixture
def two(tmp_path, engines):
    """A gateway in front of two engines that take their time."""
    pair = [engines.start(token_ms=10.0) for _ in range(2)]
    with running(tmp_path / "data") as gateway:
        secret = gateway.apply(document(*(engine.url for engine in pair)))["keys"][0]["secret"]
        with httpx.Client(
            base_url=gateway.base_url,
            headers={"authorization": f"Bearer {secret}"},
            timeout=20,
            trust_env=False,
        ) as client:
            yield gateway, client, pair


def asked(engines):
    """The requests of this test that reached an engine; probes say something else."""
    return [entry for engine in engines for entry in engine.log if b'"count"' in entry.body]


def events(response):
    return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def test_client_that_leaves_pays_what_was_counted_and_frees_the_engine_at_once(two):
    gateway, client, pair = two
    with client.stream("POST", "/chat/completions", json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()
        seen = 0
        while seen < 5:
            seen += next(lines).startswith("data: ")
    left = time.monotonic()
    [record] = gateway.records_when(1)

    assert record["outcome"] == "client_abort"
    assert record["source"] == "engine_partial"
    assert 3 <= record["completion_tokens"] < 60
    [entry] = asked(pair)
    assert entry.ended == "aborted"
    assert entry.ended_s - left < 0.1 or entry.ended_s < left


def test_unary_client_that_leaves_is_recorded(two):
    gateway, client, _ = two
    with pytest.raises(httpx.ReadTimeout):
        client.post("/chat/completions", json=BODY, timeout=0.3)
    [record] = gateway.records_when(1)

    assert (record["outcome"], record["completion_tokens"]) == ("client_abort", 0)


def test_engine_error_before_the_first_event_goes_to_a_sibling(two):
    gateway, client, pair = two
    pair[0].faults.status = 500
    for _ in range(3):  # the retry budget's floor in one window
        assert client.post("/chat/completions", json={**BODY, "max_tokens": 2}).status_code == 200
    records = gateway.records_when(3)

    assert {record["endpoint"] for record in records} == {pair[1].url}
    assert {record["attempts"] for record in records} <= {1, 2}
    assert sum(record["attempts"] for record in records) == 3 + len(asked(pair[:1]))


def test_busy_engine_is_left_alone_and_the_sibling_asked(two):
    _, client, pair = two
    pair[0].faults.status = 503
    for _ in range(5):
        assert client.post("/chat/completions", json={**BODY, "max_tokens": 2}).status_code == 200

    assert len(asked(pair[:1])) <= 1


def test_no_engine_at_all_is_a_502_in_the_contracts_shape(two):
    gateway, client, pair = two
    for engine in pair:
        engine.faults.status = 500
    response = client.post("/chat/completions", json=BODY)

    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"
    [record] = gateway.records_when(1)
    assert (record["outcome"], record["prompt_tokens"], record["source"]) == (
        "engine_error", 0, "none",
    )  # fmt: skip


def test_stream_cut_by_the_engine_ends_as_one_error_event_without_done(two):
    gateway, client, pair = two
    for engine in pair:
        engine.faults.die_after_frames = 4
    with client.stream("POST", "/chat/completions", json={**BODY, "stream": True}) as response:
        said = events(response)

    assert json.loads(said[-1])["error"]["code"] == "upstream_error"
    assert "[DONE]" not in said
    [record] = gateway.records_when(1)
    assert record["outcome"] == "engine_error"
    assert record["completion_tokens"] > 0


def test_engine_that_refuses_the_body_gives_its_error_and_a_record_of_zero(two):
    gateway, client, _ = two
    response = client.post("/chat/completions", json={**BODY, "temperature": -3})

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    [record] = gateway.records_when(1)
    assert (record["outcome"], record["prompt_tokens"]) == ("refused_by_engine", 0)


def test_engine_that_does_not_know_continuous_usage_is_asked_again_without(two):
    gateway, client, pair = two
    for engine in pair:
        engine.faults.refuse_continuous_usage = True
    with client.stream(
        "POST", "/chat/completions", json={**BODY, "max_tokens": 3, "stream": True}
    ) as response:
        said = events(response)

    assert said[-1] == "[DONE]"
    [record] = gateway.records_when(1)
    assert (record["completion_tokens"], record["source"]) == (3, "engine_final")


def test_context_overflow_has_the_contracts_code(two):
    _, client, _ = two
    long = {**BODY, "messages": [{"role": "user", "content": "word " * 40_000}]}
    response = client.post("/chat/completions", json=long)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_privileged_fields_are_dropped_and_named(two):
    _, client, pair = two
    response = client.post(
        "/chat/completions", json={**BODY, "max_tokens": 2, "priority": -9, "cache_salt": "x"}
    )

    assert response.headers["x-tf-dropped"] == "priority, cache_salt"
    [entry] = asked(pair)
    sent = json.loads(entry.body)
    assert "priority" not in sent
    assert len(sent["cache_salt"]) == 43
    assert sent["cache_salt"] != "x"


def test_engine_sees_no_header_of_the_clients(two):
    _, client, pair = two
    client.post(
        "/chat/completions",
        json={**BODY, "max_tokens": 2},
        headers={"cookie": "a=b", "x-data-parallel-rank": "3", "x-vllm-priority": "1"},
    )
    [entry] = asked(pair)
    names = {name for name, _ in entry.headers}

    assert names == {
        b"host", b"content-type", b"accept", b"accept-encoding", b"x-request-id", b"traceparent",
        b"content-length",
    }  # fmt: skip


def test_half_closed_client_has_left(two):
    gateway, client, _ = two
    host, port = gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({**BODY, "stream": True}).encode()
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: "
            + client.headers["authorization"].encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        assert b"200" in raw.recv(4096)
        raw.shutdown(socket.SHUT_WR)
        [record] = gateway.records_when(1)

    assert record["outcome"] == "client_abort"


def test_revoked_key_ends_its_streams_and_is_refused_within_a_second(two):
    gateway, client, _ = two
    with client.stream(
        "POST", "/chat/completions", json={**BODY, "max_tokens": 2000, "stream": True}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        gateway.cli("keys", "revoke", "acme/chatbot/ci")
        revoked = time.monotonic()
        said = [line for line in lines if line.startswith("data: ")]
        ended = time.monotonic()

    assert ended - revoked < 5
    assert "error" in json.loads(said[-1][6:])
    assert client.get("/models").status_code == 401
    [record] = gateway.records_when(1)
    assert record["outcome"] == "key_revoked"


def test_drain_finishes_streams_that_end_in_time_and_tells_the_others(tmp_path, engines):
    engine = engines.start(token_ms=10.0)
    with running(tmp_path / "data", drain_s=1) as gateway:
        secret = gateway.apply(document(engine.url))["keys"][0]["secret"]
        with openai.OpenAI(base_url=gateway.base_url, api_key=secret) as client:
            short = client.chat.completions.create(
                model="llama", messages=BODY["messages"], max_tokens=40, stream=True
            )
            long = client.chat.completions.create(
                model="llama", messages=BODY["messages"], max_tokens=4000, stream=True
            )
            next(short)
            next(long)
            gateway._process.terminate()
            assert list(short)[-1].choices[0].finish_reason == "length"
            with pytest.raises(openai.APIError):
                list(long)
            short.close()
            long.close()
        assert gateway._process.wait(15) == 0
        outcomes = sorted(record["outcome"] for record in gateway.records())

    assert outcomes == ["ok", "shutdown"]
