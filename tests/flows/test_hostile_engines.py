"""An engine may say anything: each request ends clearly, and the next one, of another tenant's key,
gets its own right answer over whatever the engine left behind.
"""

import json
import time

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
    event,
    right,
    sized,
)
from tests.support.until import wait_until

POISON = right("poison", stream=False)
ONE = event("a")
#: A stream that has begun; then what the case adds.
BEGUN = STREAM_HEAD + chunked(ONE)
SPLIT = [BEGUN[at : at + 7] for at in range(0, len(BEGUN), 7)]
WHOLE = b'{"id":"x","object":"chat.completion","model":"demo-model","choices":[{"index":0,"message":{"role":"assistant","content":"own"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}'


def said(status, message="no", code=None, **fields):
    return sized(
        json.dumps({"error": {"message": message, "code": code, **fields}}).encode(), status
    )


#: name: (script, wanted status, wanted code); "ok" is a whole right answer.
UNARY = {
    "closes at once": ([CLOSE], 502, "upstream_error"),
    "resets at once": ([RESET], 502, "upstream_error"),
    "says no HTTP": ([b"SSH-2.0-OpenSSH_9.9\r\n", CLOSE], 502, "upstream_error"),
    "answers TLS": ([b"\x15\x03\x01\x00\x02\x02\x28", CLOSE], 502, "upstream_error"),
    "a status of no HTTP": ([b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n"], 502, "upstream_error"),
    "HTTP/2.0": ([b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"], 502, "upstream_error"),
    "half a head": ([b"HTTP/1.1 200 OK\r\ncontent-", CLOSE], 502, "upstream_error"),
    "a head of 200 kB": ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000], 502, "upstream_error"),
    "ten thousand headers": (
        [b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * 10_000 + b"\r\n"], 502, "upstream_error",
    ),
    "two lengths": (
        [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 200\r\n\r\n{}"],
        502, "upstream_error",
    ),
    "a negative length": ([b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}"], 502, "upstream_error"),
    "a length and chunks": (
        [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
        502, "upstream_error",
    ),
    "gzip": (
        [sized(b"\x1f\x8b", 200, b"content-encoding: gzip")], 502, "upstream_error",
    ),
    "shorter than it says": ([sized(WHOLE)[:-5], CLOSE], 502, "upstream_error"),
    "longer than it says": ([sized(WHOLE) + b"junk"], 200, "ok"),
    "a second answer behind it": ([sized(WHOLE) + POISON], 200, "ok"),
    "a second answer a moment later": ([sized(WHOLE), 0.02, POISON], 200, "ok"),
    "hints before it": ([b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" * 3 + sized(WHOLE)], 200, "ok"),
    "hints without end": ([b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" * 9000], 502, "upstream_error"),
    "an upgrade": (
        [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", POISON],
        502, "upstream_error",
    ),
    "a redirect": (
        [b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"],
        502, "upstream_error",
    ),
    "HTML with a 200": (
        [b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"],
        502, "upstream_error",
    ),
    "no JSON": ([sized(b"hello")], 502, "upstream_error"),
    "half of its JSON": ([sized(WHOLE[:60])], 502, "upstream_error"),
    "an error with a 200": ([said(200, "boom")], 502, "upstream_error"),
    "a stream instead": ([right("x", stream=True)], 502, "upstream_error"),
    "nothing with a 204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], 502, "upstream_error"),
    "trailers of 4 MB": (
        [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunked(WHOLE) + b"0\r\n" + b"x: yyyyyyyyyyyyyyyyyyy\r\n" * 200_000
        ],
        502, "upstream_error",
    ),
    "a chunk extension of 500 kB": (
        [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            b"1;x=" + b"y" * 500_000 + b"\r\n{\r\n0\r\n\r\n"
        ],
        502, "upstream_error",
    ),
    "cookies and a close": (
        [sized(WHOLE, 200, b"set-cookie: a=b", b"connection: close"), CLOSE], 200, "ok",
    ),
    "a body until it closes": (
        [
            b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + WHOLE, CLOSE,
        ],
        200, "ok",
    ),
    "never answers": ([], 504, "upstream_timeout"),
    "stops in its head": ([b"HTTP/1.1 200 OK\r\n"], 504, "upstream_timeout"),
    "400": ([said(400, "bad temperature", 400, param="temperature")], 400, "400"),
    "400 for the context": (
        [said(400, "This model's maximum context length is 9 tokens.", 400)],
        400, "context_length_exceeded",
    ),
    "400 of nonsense": ([sized(b"\xff\xfe<>", 400)], 400, None),
    "400 with a code of 5000 digits": (
        [sized(b'{"error":{"message":"m","code":1' + b"0" * 5000 + b"}}", 400)], 400, None,
    ),
    "401": ([sized(b'{"error":"Unauthorized"}', 401)], 503, "upstream_misconfigured"),
    "403": ([said(403)], 503, "upstream_misconfigured"),
    "404": ([said(404, "The model `x` does not exist")], 503, "upstream_misconfigured"),
    "418": ([said(418)], 418, None),
    "429": ([sized(b"{}", 429, b"retry-after: 1")], 503, "server_is_overloaded"),
    "500": ([said(500, "at /opt/vllm/x.py")], 502, "upstream_error"),
    "503 for ages": (
        [sized(b"{}", 503, b"retry-after: " + b"9" * 400)], 503, "server_is_overloaded",
    ),
    "599 without a body": ([sized(b"", 599)], 502, "upstream_error"),
}  # fmt: skip

#: name: (script, status of the head, code of the error event or "done").
STREAMS = {
    "closes at once": ([CLOSE], 502, "upstream_error"),
    "closes after its head": ([STREAM_HEAD, CLOSE], 502, "upstream_error"),
    "ends without an event": ([STREAM_HEAD + END], 502, "upstream_error"),
    "only [DONE]": ([STREAM_HEAD + chunked(DONE) + END], 502, "upstream_error"),
    "a whole answer instead": ([sized(WHOLE)], 502, "upstream_error"),
    "an error first": (
        [STREAM_HEAD + chunked(b'data: {"error":{"message":"bad","code":400}}\n\n', DONE) + END],
        400, "400",
    ),
    "our fault first": (
        [STREAM_HEAD + chunked(b'data: {"error":{"message":"who","code":401}}\n\n') + END],
        503, "upstream_misconfigured",
    ),
    "no JSON first": ([STREAM_HEAD + chunked(b"data: hello\n\n")], 502, "upstream_error"),
    "cut": ([BEGUN, CLOSE], 200, "upstream_error"),
    "reset": ([BEGUN, 0.01, RESET], 200, "upstream_error"),
    "ended without [DONE]": ([BEGUN + END], 200, "upstream_error"),
    "cut in a chunk": ([BEGUN + b"ff\r\ndata: {", CLOSE], 200, "upstream_error"),
    "a broken chunk": ([BEGUN + b"zz\r\n"], 200, "upstream_error"),
    "no JSON": ([BEGUN + chunked(b"data: hello\n\n")], 200, "upstream_error"),
    "an event of 2 MB": (
        [BEGUN + chunked(b'data: {"x":"' + b"y" * 2_000_000 + b'"}\n\n')], 200, "upstream_error",
    ),
    "an error, then [DONE]": (
        [BEGUN + chunked(b'data: {"error":{"message":"boom","code":500}}\n\n', DONE) + END],
        200, "upstream_error",
    ),
    "stalls": ([BEGUN], 200, "upstream_timeout"),
    "stalls and keeps commenting": (
        [BEGUN, *[0.3, chunked(b": keep-alive\n\n")] * 12], 200, "upstream_timeout",
    ),
    "a second answer behind it": ([right("own", stream=True) + POISON], 200, "done"),
    "more after [DONE]": (
        [BEGUN + chunked(DONE) + chunked(event("poison")) + END], 200, "done",
    ),
    "never ends after [DONE]": ([BEGUN + chunked(DONE)], 200, "done"),
    "a byte at a time": ([*SPLIT, chunked(DONE) + END], 200, "done"),
    "CRLF": (
        [STREAM_HEAD + chunked(ONE.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n") + END],
        200, "done",
    ),
    "silence, a ping, then a cut": ([1.6, CLOSE], 200, "upstream_error"),
    "silence, a ping, then 400": ([1.6, said(400, "late", 400)], 200, "400"),
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """One gateway, one raw engine, two tenants."""
    engine = RawEngine()
    applied = document(engine.url)
    applied["models"][0]["timeouts"] = {
        "connect_s": 2, "first_event_s": 3, "gap_s": 1, "unary_s": 1, "stream_s": 20,
    }  # fmt: skip
    other = json.loads(json.dumps(applied["tenants"][0]))
    applied["tenants"].append(other | {"name": "other"})
    with running(tmp_path_factory.mktemp("hostile") / "data", wire_silence_s=1) as gateway:
        secrets = [each["secret"] for each in gateway.apply(applied)["keys"]]
        with httpx.Client(base_url=gateway.base_url, timeout=15, trust_env=False) as client:
            yield gateway, client, engine, secrets
    engine.close()


def ask(client, secret, **fields):
    body = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    content = json.dumps({**body, **fields}, separators=(",", ":"))
    return client.post("/chat/completions", content=content, headers=headers)


def right_answers_for_the_other(client, secret, case, code):
    if code == "server_is_overloaded":  # a busy engine is left alone for as long as it asks
        wait_until(lambda: ask(client, secret, nonce="waiting").status_code == 200)
    elif case == "a second answer a moment later":
        time.sleep(0.05)
    for nonce in ("first", "second"):
        answer = ask(client, secret, nonce=nonce)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == nonce
    streamed = ask(client, secret, nonce="third", stream=True)
    assert '"content":"third"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


def no_trace_of(engine, answer):
    """Nothing of the engine's house."""
    assert "poison" not in answer.text
    assert "/opt" not in answer.text
    assert str(engine.port) not in answer.text
    assert not {"set-cookie", "server"} & set(answer.headers)


@pytest.mark.parametrize("case", UNARY)
def test_a_whole_answer_ends_clearly_and_the_next_key_gets_its_own(house, case):
    _, client, engine, (mine, theirs) = house
    script, status, code = UNARY[case]
    engine.scripts[case] = script
    answer = ask(client, mine, case=case, nonce="own")

    assert answer.status_code == status, answer.text
    if code == "ok":
        assert answer.json()["choices"][0]["message"]["content"] == "own"
    else:
        error = answer.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["code"] == code
        assert error["message"]
        assert ("retry-after" in answer.headers) == (code == "server_is_overloaded")
    no_trace_of(engine, answer)
    right_answers_for_the_other(client, theirs, case, code)


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_ends_clearly_and_the_next_key_gets_its_own(house, case):
    _, client, engine, (mine, theirs) = house
    script, status, code = STREAMS[case]
    engine.scripts[case] = script
    answer = ask(client, mine, case=case, nonce="own", stream=True)

    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["code"] == code
    elif code == "done":
        assert answer.text.replace("\r", "").endswith("data: [DONE]\n\n")
        assert '"error"' not in answer.text
    else:
        last = answer.text.removesuffix("\n\n").rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == code
        assert "[DONE]" not in answer.text
        assert answer.text.count('"error"') == 1
    no_trace_of(engine, answer)
    right_answers_for_the_other(client, theirs, case, code)


def test_no_case_was_our_own_bug_and_each_has_its_record(house):
    gateway, client, engine, _ = house
    seen = len(engine.log)  # every one of them reached the engine once: there is no sibling
    records = gateway.records_when(seen)

    assert len({record["request_id"] for record in records}) == len(records) >= 4 * 70
    assert sum(record["attempts"] for record in records) == seen
    theirs = [record for record in records if record["tenant"] == "other"]
    assert {(each["outcome"], each["completion_tokens"]) for each in theirs} == {("ok", 1)}
    assert "Traceback" not in gateway.log
    metrics = client.get(gateway.ready["control_url"] + "/metrics").text
    assert "tf_internal_errors_total 0" in metrics or "tf_internal_errors_total" not in metrics
    assert 'tf_upstream_misconfigured_total{model="llama"}' in metrics
    assert "check its api_key" in gateway.log
