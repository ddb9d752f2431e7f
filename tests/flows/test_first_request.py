"""The first five minutes: serve, apply, call with the official client, see the usage."""

import openai
import pytest

from tests.support.gateway import Gateway, document, processes_of, running


@pytest.fixture
def served(tmp_path, engines):
    engine = engines.start(token_ms=1.0)
    with running(tmp_path / "data") as gateway:
        applied = gateway.apply(document(engine.url))
        client = openai.OpenAI(
            base_url=gateway.base_url, api_key=applied["keys"][0]["secret"], max_retries=0
        )
        with client:
            yield gateway, client, engine


def test_unary_stream_and_n_are_answered_and_recorded_exactly(served):
    gateway, client, _ = served
    messages = [{"role": "user", "content": "hello there"}]
    unary = client.chat.completions.create(model="llama", messages=messages, max_tokens=5)
    two = client.chat.completions.create(model="llama", messages=messages, max_tokens=4, n=2)
    with client.chat.completions.create(
        model="llama",
        messages=messages,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        streamed = list(stream)
    text = client.completions.create(model="llama", prompt=["one", "two words"], max_tokens=3)
    vectors = client.embeddings.create(model="llama", input=["a", "b"], encoding_format="float")

    wanted = [unary.usage, two.usage, streamed[-1].usage, text.usage, vectors.usage]
    records = gateway.records_when(5)

    assert [
        (record["prompt_tokens"], record["completion_tokens"], record["outcome"])
        for record in records
    ] == [(usage.prompt_tokens, getattr(usage, "completion_tokens", 0), "ok") for usage in wanted]
    assert [record["choices"] for record in records] == [1, 2, 1, 1, 1]
    assert {record["source"] for record in records} == {"engine_final"}
    assert unary.model == "llama"
    assert all(chunk.model == "llama" for chunk in streamed)


def test_usage_is_hidden_from_streams_that_did_not_ask(served):
    gateway, client, _ = served
    with client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True
    ) as stream:
        chunks = list(stream)

    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)
    [record] = gateway.records_when(1)
    assert record["completion_tokens"] == 4


def test_record_has_the_fields_that_scripts_rely_on(served):
    gateway, client, engine = served
    client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )

    [record] = gateway.records_when(1)

    assert set(record) == {
        "request_id", "tenant", "project", "key", "model", "endpoint", "attempts", "choices",
        "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "source",
        "outcome", "status", "ttft_ms", "total_ms", "price_version", "started_at",
        "attempt_log", "unbilled_ms",
    }  # fmt: skip
    assert (record["tenant"], record["project"], record["key"]) == ("acme", "chatbot", "ci")
    assert (record["endpoint"], record["attempts"], record["status"]) == (engine.url, 1, 200)


def test_models_are_listed_and_shown(served):
    _, client, _ = served

    assert [model.id for model in client.models.list()] == ["llama"]
    assert client.models.retrieve("llama").id == "llama"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_bad_keys_and_unknown_models_get_the_contracts_errors(served):
    gateway, client, _ = served
    stranger = openai.OpenAI(base_url=gateway.base_url, api_key="tf_live_nope", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as unauthorized:
        stranger.models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=[])

    assert unauthorized.value.code == "invalid_api_key"
    assert missing.value.code == "model_not_found"


def test_stop_is_clean_and_leaves_no_process(tmp_path, engines):
    engine = engines.start()
    with running(tmp_path / "data") as gateway:
        gateway.apply(document(engine.url))
        assert gateway.stop() == 0

        assert processes_of(tmp_path / "data") == []
        assert "Traceback" not in gateway.log
        assert "Warning" not in gateway.log


def test_demo_answers_the_key_it_prints(tmp_path):
    gateway = Gateway(tmp_path / "data").start("up")
    try:
        with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.ready["api_key"]) as client:
            stream = client.chat.completions.create(
                model=gateway.ready["model"],
                messages=[{"role": "user", "content": "Say hello"}],
                max_tokens=8,
                stream=True,
            )
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            stream.close()

        assert said
        [record] = gateway.records_when(1)
        assert record["completion_tokens"] == 8
    finally:
        assert gateway.stop() == 0
    assert processes_of(tmp_path / "data") == []
