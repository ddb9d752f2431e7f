"""The demo engine is vLLM to official clients, counts like it, and misbehaves on order."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import openai
import pytest

from gateway.demo.engine import Faults
from tests.support.engine import start_engine
from tests.support.until import until

__all__ = ["start_engine"]

MESSAGES = [{"role": "user", "content": "hello GPU"}]
CHAT = {"model": "demo-model", "messages": MESSAGES, "max_tokens": 4}
COUNTED = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture
async def engine(start_engine):
    return await start_engine(token_ms=1.0)


@pytest.fixture
async def client(engine):
    async with openai.AsyncOpenAI(
        base_url=engine.url + "/v1", api_key="none", max_retries=0
    ) as made:
        yield made


@pytest.fixture
async def http(engine):
    async with httpx.AsyncClient(base_url=engine.url, timeout=4, trust_env=False) as made:
        yield made


def data_of(text):
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def metric(page, name):
    found = re.search(rf"^vllm:{name}{{[^}}]*}} (\S+)$", page, re.MULTILINE)
    assert found, name
    return float(found.group(1))


async def test_official_client_reads_whole_answers(client):
    chat = await client.chat.completions.create(**CHAT, n=2)
    text = await client.completions.create(
        model="demo-model", prompt=["one", "two words"], max_tokens=3
    )
    vectors = await client.embeddings.create(model="demo-model", input=["a", "b"])

    assert [choice.index for choice in chat.choices] == [0, 1]
    assert chat.usage.completion_tokens == 8
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + 8
    assert {choice.finish_reason for choice in chat.choices} == {"length"}
    assert len(text.choices) == 2
    assert text.usage.completion_tokens == 6
    assert [each.index for each in vectors.data] == [0, 1]
    assert vectors.usage.total_tokens == vectors.usage.prompt_tokens > 0


async def test_official_client_reads_streams(client):
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options=COUNTED)
    chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert said
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage.completion_tokens for chunk in chunks] == [0, 1, 2, 3, 4, 4]
    assert chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_running_counts_are_a_choices_own_and_the_last_frame_sums_them(http):
    response = await http.post(
        "/v1/completions",
        json={
            "model": "demo-model", "prompt": ["one two three", "four"], "n": 2, "max_tokens": 3,
            "stream": True, "stream_options": COUNTED,
        },
    )  # fmt: skip
    *frames, final, done = data_of(response.text)
    last = {}
    for frame in map(json.loads, frames):
        last[frame["choices"][0]["index"]] = frame["usage"]
    total = json.loads(final)["usage"]

    assert done == "[DONE]"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [last[index]["prompt_tokens"] for index in range(4)] == [3, 3, 1, 1]
    assert {usage["completion_tokens"] for usage in last.values()} == {3}
    assert (total["prompt_tokens"], total["completion_tokens"]) == (4, 12)
    assert total["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_usage_is_there_only_when_asked_for(http):
    silent = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    final = await http.post(
        "/v1/chat/completions",
        json={**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    )

    assert "usage" not in silent.text
    assert ["usage" in frame for frame in data_of(final.text)].count(True) == 1


async def test_counters_count_a_prompt_once_per_choice(http, engine):
    usage = (await http.post("/v1/chat/completions", json={**CHAT, "n": 2})).json()["usage"]
    page = (await http.get("/metrics")).text

    assert metric(page, "prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert metric(page, "generation_tokens_total") == usage["completion_tokens"] == 8
    assert metric(page, "num_requests_running") == metric(page, "num_requests_waiting") == 0
    assert "process_start_time_seconds" in page


async def test_client_that_closes_stops_the_generation_at_once(http, engine):
    body = {**CHAT, "max_tokens": 2000, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        for _ in range(9):
            await anext(lines)
        await response.aclose()
    [entry] = engine.log
    await until(lambda: entry.ended, timeout_s=0.5)
    made = engine.generation_tokens
    await asyncio.sleep(0.02)

    assert entry.ended == "aborted"
    assert 3 <= entry.tokens < 200
    assert engine.generation_tokens == made == entry.tokens
    assert engine.running == 0


async def test_unary_client_that_closes_stops_it_too(engine):
    async with httpx.AsyncClient(base_url=engine.url, timeout=0.2, trust_env=False) as short:
        with pytest.raises(httpx.ReadTimeout):
            await short.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4000})
    [entry] = engine.log
    await until(lambda: entry.ended)

    assert entry.ended == "aborted"
    assert 0 < entry.tokens < 1000


async def test_request_id_of_the_caller_is_in_the_answer_and_in_the_log(http, engine):
    response = await http.post(
        "/v1/chat/completions", json=CHAT, headers={"x-request-id": "req_7", "cookie": "a=b"}
    )
    [entry] = engine.log

    assert response.json()["id"] == "chatcmpl-req_7"
    assert (entry.request_id, entry.tokens, entry.ended) == ("req_7", 4, "finished")
    assert (entry.prompt_tokens, entry.choices) == (response.json()["usage"]["prompt_tokens"], 1)
    assert (b"cookie", b"a=b") in entry.headers
    assert json.loads(entry.body) == CHAT


async def test_same_seed_says_the_same(http):
    def said(response):
        return response.json()["choices"][0]["message"]["content"]

    once, again, other = [
        said(await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 30, "seed": seed}))
        for seed in (1, 1, 2)
    ]
    assert once == again != other


REFUSALS = {
    "no JSON": (b"{bad", 400, "Bad Request"),
    "no messages": (b'{"model":"demo-model"}', 400, "Bad Request"),
    "another model": (json.dumps({**CHAT, "model": "nope"}).encode(), 404, "NotFoundError"),
    "cold": (json.dumps({**CHAT, "temperature": -3}).encode(), 400, "BadRequestError"),
    "longer than the window": (
        json.dumps({**CHAT, "max_tokens": 8192}).encode(), 400, "BadRequestError",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status", "kind"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_refusals_are_in_vllms_shape_with_an_integer_code(http, engine, body, status, kind):
    response = await http.post("/v1/chat/completions", content=body)
    error = response.json()["error"]

    assert response.status_code == error["code"] == status
    assert error["type"] == kind
    assert set(error) == {"message", "type", "param", "code"}
    assert engine.log[-1].ended == "refused"
    assert engine.prompt_tokens == 0


async def test_context_overflow_names_the_window(http):
    body = {**CHAT, "messages": [{"role": "user", "content": "word " * 40_000}]}
    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]

    assert "maximum context length is 8192 tokens" in error["message"]
    assert error["param"] == "input_tokens"


async def test_tokenize_counts_what_generation_counts(http):
    counted = (await http.post("/tokenize", json={"messages": MESSAGES})).json()
    usage = (await http.post("/v1/chat/completions", json=CHAT)).json()["usage"]

    assert counted["count"] == usage["prompt_tokens"] == len(counted["tokens"])
    assert counted["max_model_len"] == 8192


async def test_pages_are_there_and_others_are_not(http):
    assert (await http.get("/v1/models")).json()["data"][0]["id"] == "demo-model"
    assert (await http.get("/health")).content == b""
    assert (await http.get("/version")).json() == {"version": "0.32.0"}
    assert (await http.get("/load")).json() == {"server_load": 0}
    assert (await http.get("/nowhere")).status_code == 404


# -- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_status_on_order(http, engine, status):
    engine.faults.status = status
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == status
    assert (await http.get("/health")).status_code == 200
    engine.faults.status = 0
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def frames_of(http):
    """How many frames came before the connection broke."""
    seen = 0
    body = {**CHAT, "stream": True}
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                seen += line.startswith("data: ")
    except httpx.RemoteProtocolError:
        return seen
    raise AssertionError("the stream ended whole")


async def test_death_in_the_middle_of_a_stream(http, engine):
    engine.faults.die_after_frames = 3

    assert await frames_of(http) == 3


async def test_stall_keeps_the_connection_and_ends_with_it(http, engine):
    engine.faults.stall_after_frames = 2
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/chat/completions", json={**CHAT, "stream": True}, timeout=0.2)
    await until(lambda: engine.log[-1].ended)

    assert engine.log[-1].ended == "aborted"


async def test_error_event_first_is_followed_by_done(start_engine):
    engine = await start_engine(faults=Faults(error_event_first=True))
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    said, done = data_of(response.text)

    assert response.status_code == 200
    assert json.loads(said)["error"]["code"] == 500
    assert done == "[DONE]"


async def test_options_it_does_not_know_are_named(http, engine):
    engine.faults.refuse_continuous_usage = True
    body = {**CHAT, "stream": True, "stream_options": COUNTED}
    refused = await http.post("/v1/chat/completions", json=body)
    body["stream_options"] = {"include_usage": True}

    assert refused.status_code == 400
    assert "continuous_usage_stats" in refused.json()["error"]["message"]
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_no_usage_at_all(http, engine):
    engine.faults.no_usage = True
    body = {**CHAT, "stream": True, "stream_options": COUNTED}

    assert "usage" not in (await http.post("/v1/chat/completions", json=CHAT)).json()
    assert "usage" not in (await http.post("/v1/chat/completions", json=body)).text


async def test_delay_before_the_first_byte(http, engine):
    engine.faults.delay_s = 5
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/chat/completions", json=CHAT, timeout=0.1)


# -- as a process ----------------------------------------------------------------------------------


def started(*arguments, **options):
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.demo", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        **options,
    )
    assert process.stdout is not None
    with process.stdout:
        return process, json.loads(process.stdout.readline())


def test_process_tells_its_address_and_ends_on_a_signal():
    process, ready = started("--model", "small")
    models = httpx.get(ready["url"] + "/v1/models", trust_env=False).json()
    process.send_signal(signal.SIGTERM)

    assert ready["event"] == "ready"
    assert models["data"][0]["id"] == "small"
    assert process.wait(3) == 0


def test_process_on_a_leash_ends_with_its_parent():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process, ready = started("--leash-fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
        assert httpx.get(ready["url"] + "/health", trust_env=False).status_code == 200
        theirs.close()
        ours.close()

    assert process.wait(3) == 0


async def test_answer_ends_by_itself_before_a_larger_cap(start_engine):
    engine = await start_engine(token_ms=0.0, answer_tokens=10)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as client:
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": engine.model, "messages": messages}
        free = (await client.post("/v1/chat/completions", json=body)).json()
        capped = (await client.post("/v1/chat/completions", json={**body, "max_tokens": 3})).json()

    assert free["choices"][0]["finish_reason"] == "stop"
    assert 10 <= free["usage"]["completion_tokens"] < 80
    assert capped["choices"][0]["finish_reason"] == "length"


async def test_a_stop_string_ends_a_choice_before_its_cap(client):
    asked = {**CHAT, "max_tokens": 50, "seed": 7}
    free = (await client.chat.completions.create(**asked)).choices[0].message.content
    stop = free.split(" ")[3]
    whole = await client.chat.completions.create(**asked, stop=stop)
    stream = await client.chat.completions.create(
        **asked, stop=["never said", stop], stream=True, stream_options=COUNTED
    )
    chunks = [chunk async for chunk in stream]

    [choice] = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("stop", free[: free.index(stop)])
    assert choice.stop_reason == stop
    said = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert said.startswith(choice.message.content.rstrip())
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens < 50


async def test_choices_that_stop_are_counted_alone(http, engine):
    body = {**CHAT, "n": 4, "max_tokens": 40, "stop": ["a"]}
    answer = (await http.post("/v1/chat/completions", json=body)).json()

    assert {choice["finish_reason"] for choice in answer["choices"]} <= {"stop", "length"}
    assert answer["usage"]["completion_tokens"] == engine.log[-1].tokens < 160
