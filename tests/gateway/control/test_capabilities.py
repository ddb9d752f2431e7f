"""What an endpoint is found to be, and what finding out may cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.control.capabilities import (
    Caller,
    ProbeReport,
    UsageFound,
    ask_template,
    probe_endpoint,
)
from gateway.wire.fetch import fetch
from tests.support.small_engine import SmallEngine, chunk, small_engine, sse, vllm_like
from tests.support.topology import endpoint

RECORDED = Path(__file__).parents[1] / "contract" / "recorded"
USAGE = {"prompt_tokens": 7, "completion_tokens": 1}


async def report_of(engine: SmallEngine, *upstreams: str, **fields: Any) -> ProbeReport:
    return await probe_endpoint(endpoint(1, url=engine.url, **fields), upstreams, fetch, {})


async def test_a_vllm_is_found_out_completely() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        assert await report_of(engine, "llama") == ProbeReport(
            url=engine.url,
            reachable=True,
            healthy=True,
            models={"llama": 4096, "adapter": None},
            metrics=True,
            tokenize=True,
            usage={"llama": UsageFound("continuous", 7, 1)},
        )


async def test_a_report_reads_as_lines_for_an_operator() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        shown = (await report_of(engine, "llama")).shown()
    assert shown["usage_in_streams"] == {"llama": "continuous"}
    assert shown["probe_tokens"] == 8
    assert "problem" not in shown


async def test_the_question_is_one_token_long() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        await report_of(engine, "llama")
        bodies = [body for _, path, _, body in engine.asked if path == "/v1/chat/completions"]
    assert [body["max_tokens"] for body in bodies] == [1]


def refusing(*words: str) -> Callable[[Any], tuple[int, bytes]]:
    """400 while the body holds one of the words, as an engine that does not know them."""

    def answer(body: Any) -> tuple[int, bytes]:
        asked = json.dumps(body)
        for word in words:
            if word in asked:
                return 400, b'{"error":{"message":"unknown: stream_options.%s"}}' % word.encode()
        wants = "include_usage" in asked
        final = [chunk(usage=USAGE, choices=0)] if wants else []
        return 200, sse(chunk(), chunk(), *final)

    return answer


def deaf(_body: Any) -> tuple[int, bytes]:
    return 200, sse(chunk(), chunk())


def needs_newer_cap(body: Any) -> tuple[int, bytes]:
    if "max_tokens" in body:
        return 400, b'{"error":{"message":"use max_completion_tokens instead"}}'
    return 200, sse(chunk(usage=USAGE), chunk(usage=USAGE))


@pytest.mark.parametrize(
    ("chat", "found"),
    [
        pytest.param(refusing(), UsageFound("final", 7, 1), id="ignores continuous"),
        pytest.param(
            refusing("continuous_usage_stats"), UsageFound("final", 7, 1), id="refuses continuous"
        ),
        pytest.param(
            refusing("continuous_usage_stats", "include_usage"),
            UsageFound("none", 0, 1),
            id="refuses both",
        ),
        pytest.param(deaf, UsageFound("none", 0, 1), id="takes all, tells nothing"),
        pytest.param(needs_newer_cap, UsageFound("continuous", 7, 1), id="newer cap"),
        pytest.param((200, b"no stream"), UsageFound(None), id="no stream at all"),
        pytest.param((500, b""), UsageFound(None), id="broken"),
        pytest.param((401, b""), UsageFound(None), id="refuses us"),
    ],
)
async def test_usage_in_streams_is_what_the_stream_showed(chat: Any, found: UsageFound) -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        engine.answers["/v1/chat/completions"] = chat
        assert (await report_of(engine, "llama")).usage == {"llama": found}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("chat_stream_continuous", UsageFound("continuous", 16, 5)),
        ("chat_stream_usage", UsageFound("final", 16, 5)),
        ("chat_stream", UsageFound("none", 0, 1)),
    ],
)
async def test_recorded_streams_of_a_vllm_are_told_apart(name: str, found: UsageFound) -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        stream = (RECORDED / f"{name}.body").read_bytes()
        engine.answers["/v1/chat/completions"] = (200, stream)
        assert (await report_of(engine, "llama")).usage == {"llama": found}


async def test_a_base_model_is_asked_without_a_chat() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        completions = engine.answers["/v1/chat/completions"]
        engine.answers |= {
            "/v1/chat/completions": (400, b'{"error":{"message":"no chat template"}}'),
            "/v1/completions": completions,
        }
        assert (await report_of(engine, "llama")).usage["llama"].mode == "continuous"


async def test_configured_usage_is_believed_and_costs_nothing() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        assert (await report_of(engine, "llama", usage="final")).usage == {}
        assert engine.times("/v1/chat/completions") == 0


async def test_a_model_the_engine_does_not_list_is_named_and_not_asked() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        report = await report_of(engine, "mistral")
    assert report.healthy
    assert report.problem == "the engine does not list mistral"
    assert report.usage == {}


async def test_an_endpoint_that_is_away_is_a_report_too() -> None:
    async with small_engine() as engine:
        url = engine.url
    gone = await probe_endpoint(endpoint(1, url=url), ("llama",), fetch, {})
    assert (gone.reachable, gone.healthy) == (False, False)
    assert "cannot connect" in gone.problem


async def test_an_unhealthy_engine_says_what_it_answered() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        engine.answers["/health"] = (503, b"")
        report = await report_of(engine, "llama")
    assert (report.healthy, report.problem) == (False, "/health answered 503")


async def test_nim_and_openai_have_their_own_pages() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        engine.answers |= {
            "/v1/health/ready": (200, b'{"status":"ready"}'),
            "/v1/metrics": (200, b"num_requests_waiting 3.0\n"),
        }
        nim = await report_of(engine, "llama", dialect="nim")
        assert (nim.healthy, nim.metrics) == (True, True)
        openai = await report_of(engine, "llama", dialect="openai")
        assert (openai.healthy, openai.metrics) == (True, False)
        assert engine.times("/health") == 0


async def test_the_credential_goes_to_the_engine_and_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("sk-engine\n")
    async with small_engine() as engine:
        vllm_like(engine)
        report = await report_of(engine, "llama", api_key_file=str(secret))
        sent = {headers.get("authorization") for _, _, headers, _ in engine.asked}
    assert sent == {"Bearer sk-engine"}
    assert "sk-engine" not in repr(report)


async def test_a_credential_of_two_lines_is_not_sent(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("one\r\nx-admin: two")
    async with small_engine() as engine:
        vllm_like(engine)
        await report_of(engine, "llama", api_key_file=str(secret))
        assert all(
            not {"authorization", "x-admin"} & headers.keys() for _, _, headers, _ in engine.asked
        )


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"data":7}', b'{"data":[7,{"id":3},{"id":"m","max_model_len":"x"}]}']
)
async def test_odd_model_lists_break_nothing(body: bytes) -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        engine.answers["/v1/models"] = (200, body)
        report = await report_of(engine, "m")
    assert report.models in ({}, {"m": None})


def counting(chat: int, message: int) -> Callable[[Any], tuple[int, bytes]]:
    """A /tokenize whose template costs so much a conversation and so much a message."""

    def answer(body: Any) -> tuple[int, bytes]:
        if "messages" in body:
            return 200, b'{"count": %d}' % (chat + message * len(body["messages"]))
        return 200, b'{"count": 2}'

    return answer


async def template_of(engine: SmallEngine) -> int | None:
    return await ask_template(Caller(endpoint(1, url=engine.url), fetch, {}), "llama")


async def test_a_templates_tokens_are_asked_of_the_engine() -> None:
    async with small_engine() as engine:
        engine.answers["/tokenize"] = counting(chat=30, message=5)
        assert await template_of(engine) == 35


async def test_a_template_longer_than_a_messages_json_bounds_nothing() -> None:
    async with small_engine() as engine:
        engine.answers["/tokenize"] = counting(chat=30, message=40)
        assert await template_of(engine) is None


async def test_a_model_without_a_template_costs_its_special_tokens() -> None:
    def base(body: Any) -> tuple[int, bytes]:
        return (200, b'{"count": 2}') if "prompt" in body else (400, b"{}")

    async with small_engine() as engine:
        engine.answers["/tokenize"] = base
        assert await template_of(engine) == 2
        engine.answers["/tokenize"] = (404, b"{}")
        assert await template_of(engine) is None
