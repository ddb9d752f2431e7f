"""What an engine does wrong before its answer begins costs the caller nothing where a sibling is well."""

import json

import httpx
import pytest

from tests.support.gateway import document, running
from tests.support.raw_engine import (
    CLOSE,
    DONE,
    END,
    RESET,
    STREAM_HEAD,
    RawEngine,
    chunked,
    right,
    sized,
)

ERROR = b'data: {"error":{"message":"boom","type":"InternalServerError","code":%d}}\n\n'
#: name: (what the ill one says, whether the request is a stream).
ILL = {
    "closes": ([CLOSE], False),
    "resets": ([RESET], False),
    "no HTTP": ([b"hello\r\n\r\n"], False),
    "500": ([sized(b"{}", 500)], False),
    "401": ([sized(b"{}", 401)], False),
    "429": ([sized(b"{}", 429)], False),
    "HTML": ([b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n"], False),
    "closes a stream": ([CLOSE], True),
    "closes after the head": ([STREAM_HEAD, CLOSE], True),
    "no event": ([STREAM_HEAD + END], True),
    "no JSON": ([STREAM_HEAD + chunked(b"data: x\n\n")], True),
    "comments, then closes": ([STREAM_HEAD + chunked(b": hello\n\n"), CLOSE], True),
    "an error event": ([STREAM_HEAD + chunked(ERROR % 500, DONE) + END], True),
    "a busy event": ([STREAM_HEAD + chunked(ERROR % 503, DONE) + END], True),
    "silence": ([STREAM_HEAD], True),
}
#: Retries are at most a tenth of a pool's requests: so many are right for each that is not.
RIGHT_ONES = 14


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pair = [RawEngine(), RawEngine()]
    applied = document(*(engine.url for engine in pair))
    applied["models"][0]["timeouts"] = {"first_event_s": 1}
    with running(tmp_path_factory.mktemp("failover") / "data") as gateway:
        [key] = gateway.apply(applied)["keys"]
        with httpx.Client(
            base_url=gateway.base_url,
            headers={"authorization": f"Bearer {key['secret']}"},
            timeout=10,
            trust_env=False,
        ) as client:
            yield client, pair
    for engine in pair:
        engine.close()


def ask(client, **fields):
    body = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    content = json.dumps({**body, **fields}, separators=(",", ":"))
    return client.post(
        "/chat/completions", content=content, headers={"content-type": "application/json"}
    )


@pytest.mark.parametrize("name", ILL)
def test_the_sibling_answers_and_the_caller_sees_nothing_of_it(house, name):
    client, pair = house
    script, stream = ILL[name]
    ill, well = pair if list(ILL).index(name) % 2 else reversed(pair)
    ill.scripts[name] = script
    well.scripts[name] = [right("own", stream=stream)]
    for engine in pair:
        engine.log.clear()
    asked = 0
    while asked < RIGHT_ONES or not all(engine.log for engine in pair):
        asked += 1  # until both serve: a busy one is left alone for half a second
        assert ask(client, nonce="before").status_code == 200
    for engine in pair:
        engine.log.clear()
    for _ in range(40):
        answer = ask(client, case=name, nonce="own", stream=stream)
        assert answer.status_code == 200, answer.text
        assert '"content":"own"' in answer.text.replace(": ", ":")
        assert "error" not in answer.text
        assert ("[DONE]" in answer.text) == stream
        if any(name.encode() in body for _, body in ill.log):
            break
        assert ask(client, nonce="between").status_code == 200
    else:
        raise AssertionError("the ill one was never asked")
