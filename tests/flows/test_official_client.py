"""OpenAI's own client, sync and async: every operation, and every error as the class it knows."""

import openai
import pytest

from tests.support.engine_thread import EngineThread
from tests.support.gateway import document, running
from tests.support.until import wait_until

MESSAGES = [{"role": "user", "content": "hello there"}]
CHAT = {"model": "llama", "messages": MESSAGES, "max_tokens": 5}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A gateway with a small limit on one of its keys; ``engine`` misbehaves on order."""
    engines = EngineThread()
    engine = engines.start(token_ms=1.0)
    applied = document(engine.url)
    applied["models"][0]["timeouts"] = {"unary_s": 1, "first_event_s": 1, "gap_s": 1}
    keys = applied["tenants"][0]["projects"][0]["keys"]
    keys.append({"name": "small", "limits": {"requests_per_minute": 1}})
    keys.append({"name": "other", "models": []})
    with running(tmp_path_factory.mktemp("official") / "data") as gateway:
        made = gateway.apply(applied)["keys"]
        yield gateway, engine, {each["path"].rpartition("/")[2]: each["secret"] for each in made}
    engines.close()


@pytest.fixture
def engine(house):
    """Well again for every test."""
    faults = type(house[1].faults)()
    house[1].faults = faults
    return house[1]


@pytest.fixture
def client(house, engine):
    gateway, _, secrets = house
    with openai.OpenAI(
        base_url=gateway.base_url, api_key=secrets["ci"], max_retries=0, timeout=10
    ) as made:
        yield made


def test_it_reads_whole_answers_streams_vectors_and_models(client):
    chat = client.chat.completions.create(**CHAT, n=2)
    with client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = client.completions.create(model="llama", prompt=["one", "two words"], max_tokens=3)
    with client.completions.create(
        model="llama", prompt="one", max_tokens=3, stream=True
    ) as stream:
        pieces = list(stream)
    vectors = client.embeddings.create(model="llama", input=["a", "b"], encoding_format="float")

    assert [choice.finish_reason for choice in chat.choices] == ["length", "length"]
    assert chat.usage.completion_tokens == 10
    assert chat.model == "llama"
    assert chat._request_id
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens == 5
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len(text.choices) == 2
    assert "".join(piece.choices[0].text for piece in pieces)
    assert [each.index for each in vectors.data] == [0, 1]
    assert [model.id for model in client.models.list()] == ["llama"]
    assert client.models.retrieve("llama").id == "llama"


async def test_its_async_form_reads_the_same(house, engine):
    gateway, _, secrets = house
    async with openai.AsyncOpenAI(
        base_url=gateway.base_url, api_key=secrets["ci"], max_retries=0
    ) as client:
        chat = await client.chat.completions.create(**CHAT)
        stream = await client.chat.completions.create(**CHAT, stream=True)
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        text = await client.completions.create(model="llama", prompt="one", max_tokens=3)
        vectors = await client.embeddings.create(model="llama", input="a", encoding_format="float")
        models = [model.id async for model in client.models.list()]

    assert chat.usage.completion_tokens == 5
    assert said
    assert text.choices[0].text
    assert len(vectors.data) == 1
    assert models == ["llama"]


def test_its_raw_answers_carry_the_rate_headers_and_our_id(client):
    raw = client.chat.completions.with_raw_response.create(**CHAT)

    assert raw.headers["x-request-id"] == raw.request_id
    assert len(raw.request_id) == 32
    assert raw.parse().choices


def refused(client, kind, **fields):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{**CHAT, **fields})
    error = caught.value
    assert type(error) is kind
    assert error.request_id
    assert error.body.keys() == {"message", "type", "param", "code"}
    return error


def test_a_wrong_key_is_an_authentication_error(house):
    gateway, _, _ = house
    with openai.OpenAI(
        base_url=gateway.base_url, api_key="tf_live_nope", max_retries=0
    ) as stranger:
        error = refused(stranger, openai.AuthenticationError)

    assert (error.code, error.type, error.param) == (
        "invalid_api_key", "invalid_request_error", None,
    )  # fmt: skip


def test_a_model_that_is_not_and_one_that_is_not_allowed_are_the_same_bytes(house, client):
    gateway, _, secrets = house
    missing = refused(client, openai.NotFoundError, model="gpt-9")
    with openai.OpenAI(base_url=gateway.base_url, api_key=secrets["other"], max_retries=0) as other:
        forbidden = refused(other, openai.NotFoundError)

    assert (missing.code, missing.param) == ("model_not_found", "model")
    assert forbidden.response.content == missing.response.content.replace(b"gpt-9", b"llama")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": "2"}, "invalid_request_error", "n"),
        ({"messages": "hello"}, "invalid_request_error", "messages"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "invalid_request_error",
         "stream_options.include_usage"),
        ({"temperature": -3}, "400", "temperature"),
        ({"messages": [{"role": "user", "content": "word " * 40_000}]},
         "context_length_exceeded", "messages"),
    ],
)  # fmt: skip
def test_a_bad_request_names_the_path(client, fields, code, param):
    error = refused(client, openai.BadRequestError, **fields)

    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")


def test_a_body_above_the_bound_is_a_413(client):
    error = refused(client, openai.APIStatusError, user="x" * (8 << 20))

    assert (error.status_code, error.code) == (413, "request_body_too_large")


def test_a_limit_is_a_rate_limit_error_with_the_wait(house, engine):
    gateway, _, secrets = house
    with openai.OpenAI(base_url=gateway.base_url, api_key=secrets["small"], max_retries=0) as small:
        small.chat.completions.create(**CHAT)
        error = refused(small, openai.RateLimitError)

    assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
    assert 0 < float(error.response.headers["retry-after-ms"]) <= 60_000


@pytest.mark.parametrize(
    ("status", "wanted", "code"),
    [
        (400, 400, "400"), (401, 503, "upstream_misconfigured"), (403, 503, "upstream_misconfigured"),
        (404, 503, "upstream_misconfigured"), (500, 502, "upstream_error"),
        (503, 503, "server_is_overloaded"),
    ],
)  # fmt: skip
def test_an_engines_status_is_the_class_of_what_it_means(client, engine, status, wanted, code):
    engine.faults.status = status
    kind = openai.BadRequestError if status == 400 else openai.InternalServerError
    error = refused(client, kind)

    assert (error.status_code, error.code) == (wanted, code)
    assert ("retry-after" in error.response.headers) == (code == "server_is_overloaded")
    engine.faults.status = 0
    until_served(client)


def until_served(client):
    """A busy engine is left alone for half a second."""

    def served():
        try:
            return client.chat.completions.create(**CHAT).choices
        except openai.InternalServerError:
            return False

    wait_until(served)


def test_an_engine_that_is_too_slow_is_a_504(client, engine):
    engine.faults.delay_s = 5.0
    error = refused(client, openai.InternalServerError)

    assert (error.status_code, error.code) == (504, "upstream_timeout")


def test_an_error_event_that_comes_first_is_a_status_of_its_own(client, engine):
    engine.faults.error_event_first = True
    error = refused(client, openai.InternalServerError, stream=True)

    assert (error.status_code, error.code) == (502, "upstream_error")


@pytest.mark.parametrize("fault", ["die_after_frames", "stall_after_frames"])
def test_a_stream_that_breaks_raises_its_message(client, engine, fault):
    setattr(engine.faults, fault, 3)
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        got = []
        with pytest.raises(openai.APIError) as caught:
            got.extend(stream)

    assert caught.value.code == ("upstream_error" if "die" in fault else "upstream_timeout")


async def test_the_async_client_raises_the_same(house, engine):
    gateway, _, secrets = house
    async with openai.AsyncOpenAI(
        base_url=gateway.base_url, api_key=secrets["ci"], max_retries=0
    ) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**CHAT, "model": "gpt-9"})
        engine.faults.die_after_frames = 3
        stream = await client.chat.completions.create(**CHAT, stream=True)
        with pytest.raises(openai.APIError, match="failed to answer"):
            _ = [chunk async for chunk in stream]
