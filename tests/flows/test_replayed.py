"""What a real vLLM answered, through the whole gateway; and aborts at every chunk of a stream: what
is recorded lies between what the client received and what the engine wrote.
"""

import json
import random
import re
import socket
import time

import httpx
import pytest

from tests.support.engine_thread import EngineThread
from tests.support.gateway import document, running
from tests.support.raw_engine import END, STREAM_HEAD, RawEngine, chunked, sized
from tests.support.recordings import RECORDED, STREAMS

#: (prompt, completion) that the recorded engine counted at the end of each.
COUNTED = {
    "chat": (16, 5),
    "completions": (7, 5),
    "chat_stream_continuous": (16, 5),
    "chat_stream_continuous_n2": (16, 8),
    "completions_stream_continuous": (12, 8),
}
TOKENS = 6


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    raw = RawEngine()
    folder = tmp_path_factory.mktemp("replayed")
    with running(folder / "data") as gateway:
        [key] = gateway.apply(document(raw.url))["keys"]
        with httpx.Client(
            base_url=gateway.base_url,
            headers={
                "authorization": f"Bearer {key['secret']}",
                "content-type": "application/json",
            },
            timeout=15,
            trust_env=False,
        ) as client:
            yield gateway, client, raw
    raw.close()


def record_of(gateway, response):
    wanted = response.headers["x-request-id"]
    until_s = time.monotonic() + 15  # it is on its way: journal, shipper, ledger
    while time.monotonic() < until_s:
        found = [each for each in gateway.records_when(1) if each["request_id"] == wanted]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no record of {wanted}")


def request_of(name, **fields):
    """A request that asks for the recorded answer, spelt as a client of its own mind might."""
    recorded = json.loads((RECORDED / f"{name}.request.json").read_text())
    recorded.pop("stream_options", None)
    return {**recorded, "model": "llama", "case": name, "nonce": "x", **fields}


def public(body):
    return body.replace(b'"model":"tiny-llama"', b'"model":"llama"')


@pytest.mark.parametrize("name", ["chat", "completions"])
def test_recorded_whole_answers_differ_in_the_model_alone(house, name):
    gateway, client, raw = house
    body = (RECORDED / f"{name}.body").read_bytes()
    raw.scripts[name] = [sized(body)]
    path = "/chat/completions" if name == "chat" else "/completions"
    answer = client.post(path, json=request_of(name))

    assert answer.content == public(body)
    record = record_of(gateway, answer)
    assert (record["prompt_tokens"], record["completion_tokens"]) == COUNTED[name]
    assert record["source"] == "engine_final"


@pytest.mark.parametrize("asked", ["nothing", "final", "all"])
@pytest.mark.parametrize("name", [name.removesuffix(".body") for name in STREAMS[2:]])
def test_recorded_streams_differ_in_model_and_unasked_usage_alone(house, name, asked):
    gateway, client, raw = house
    body = (RECORDED / f"{name}.body").read_bytes()
    rng = random.Random(name + asked)
    cuts = sorted(rng.sample(range(1, len(body)), 40))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    raw.scripts[name] = [STREAM_HEAD, *(chunked(piece) for piece in pieces), END]
    options = {"nothing": {}, "final": {"include_usage": True}}.get(
        asked, {"include_usage": True, "continuous_usage_stats": True}
    )
    fields = {"stream_options": options} if options else {}
    path = "/chat/completions" if name.startswith("chat") else "/completions"
    answer = client.post(path, json=request_of(name, **fields))

    wanted = []
    for frame in re.split(rb"(?<=\n\n)", body):
        final = b'"choices":[]' in frame
        if asked == "all" or (final and asked == "final"):
            wanted.append(frame)
        elif not final:
            wanted.append(re.sub(rb',"usage":\{[^{}]*\}', b"", frame))
    assert answer.content == public(b"".join(wanted))
    record = record_of(gateway, answer)
    assert (record["prompt_tokens"], record["completion_tokens"]) == COUNTED[name]


@pytest.mark.parametrize("name", ["chat_stream_continuous", "completions_stream_continuous"])
def test_the_engine_gets_the_callers_bytes_less_the_declared_edits(house, name):
    _, client, raw = house
    raw.scripts[name] = [STREAM_HEAD, chunked((RECORDED / f"{name}.body").read_bytes()), END]
    body = json.dumps(request_of(name), separators=(",", ":")).encode()
    odd = body[:-1] + b' , "z\\u0061" : [ 1.50 , "\\ud83d\\ude00" ,{"priority":1}],"priority":5}'
    raw.log.clear()
    path = "/chat/completions" if name.startswith("chat") else "/completions"
    client.post(path, content=odd)
    [(_, seen)] = raw.log

    wanted = odd.replace(b'"llama"', b'"demo-model"').removesuffix(b',"priority":5}') + b"}"
    added = re.match(
        rb'\{"stream_options":\{"include_usage":true,"continuous_usage_stats":true\},'
        rb'"cache_salt":"[\w-]{43}",',
        seen,
    )
    assert added is not None
    assert b"{" + seen[added.end() :] == wanted


# -- aborts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aborted(tmp_path_factory):
    """Every stream, cut by its client after each of its events: (record, received, written)."""
    engines = EngineThread()
    engine = engines.start(token_ms=3.0)
    with running(tmp_path_factory.mktemp("aborted") / "data") as gateway:
        [key] = gateway.apply(document(engine.url))["keys"]
        done = [
            (kind, n, events, *cut_after(gateway, key["secret"], kind, request(kind, n), events))
            for kind in ("chat", "completions")
            for n in (1, 2, 4)
            for events in range(1, events_of(kind, n) + 1)
        ]
        records = {each["request_id"]: each for each in gateway.records_when(len(done), 10)}
    written = {entry.request_id: entry.tokens for entry in engine.log}
    engines.close()
    return [
        (f"{kind} n={n} after {events}", n, records[request_id], received, written[request_id])
        for kind, n, events, request_id, received in done
    ]


def request(kind, n):
    body = {"model": "llama", "n": n, "max_tokens": TOKENS, "stream": True}
    if kind == "chat":
        return {**body, "messages": [{"role": "user", "content": "abort me"}]}
    return {**body, "prompt": ["first prompt", "and the second one"]}


def events_of(kind, n):
    return n * (TOKENS + 1) if kind == "chat" else 2 * n * TOKENS


def cut_after(gateway, secret, kind, body, events):
    """The request's id, and tokens received when the client left."""
    host, port = gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    content = json.dumps(body).encode()
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    data = b""
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head.encode() + content)
        while data.count(b"data: {") < events:
            more = raw.recv(65_536)
            assert more, data
            data += more
    request_id = re.search(rb"\r\nx-request-id: (\w+)", data)[1].decode()
    received = data.count(b"data: {") - data.count(b'"role":"assistant"')
    return request_id, received


def test_an_abort_at_any_chunk_records_between_received_and_written(aborted):
    wrong = [
        (case, received, record["completion_tokens"], written)
        for case, _, record, received, written in aborted
        if not received <= record["completion_tokens"] <= written
    ]

    assert not wrong
    assert len(aborted) == 7 + 14 + 28 + 12 + 24 + 48


def test_an_abort_is_recorded_as_one_with_the_engines_own_counts(aborted):
    cut = [record for _, _, record, _, _ in aborted if record["outcome"] == "client_abort"]

    assert len(cut) > 0.7 * len(aborted)
    assert {record["source"] for record in cut} <= {"engine_partial", "engine_final"}
    assert {record["outcome"] for _, _, record, _, _ in aborted} <= {"client_abort", "ok"}


def test_prompts_are_counted_once_each_as_soon_as_a_choice_of_theirs_was_seen(aborted):
    for case, n, record, _, _ in aborted:
        kind, _, after = case.partition(" ")
        seen = int(after.rpartition(" ")[2])
        total = max(each[2]["prompt_tokens"] for each in aborted if each[0].startswith(kind))
        if kind == "chat" or seen > n:  # a choice of the second prompt was seen
            assert record["prompt_tokens"] == total, case
        else:
            assert 0 < record["prompt_tokens"] <= total, case
