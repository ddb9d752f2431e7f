"""The short way and the long way read one body alike, and edit it to the same bytes."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import everyday
from gateway.contract.edits import edit
from gateway.contract.envelope import parse
from gateway.contract.errors import InvalidBody
from gateway.contract.everyday import BODY_BYTES_MAX, read

CHAT = b'{"model":"llama","messages":[{"role":"user","content":"hi"}],"max_tokens":5}'
SPACES = st.sampled_from(["", " ", "\n", "\t \r\n"])
TEXTS = st.sampled_from(
    ["", "x", "héé", "a\\nb", '\\"model\\":', "\\u006d", "[{", "data:;base64,AAAA", "model"]
)
KEYS = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "user",
        "temperature",
        "stream_options",
        "priority",
        "model",
        "cache_salt",
        "tools",
        "input",
        "x",
    ]
)
VALUES = st.one_of(
    TEXTS.map(lambda text: f'"{text}"'),
    st.sampled_from(["true", "false", "null", "0", "7", "-1", "1.0", "1e2", "4294967296", "[]"]),
    st.sampled_from(['[{"role":"user","content":"x"}]', '{"model":"y"}', '{"include_usage":true}']),
    st.sampled_from(
        ['[{"priority":1,"content":"\\u00e9\\ud800"}]', '{"messages":[{}]}', '{"prompt":"p"}']
    ),
    st.sampled_from(['["model","x"]', '[{"user":"z","a":[[]]}]', "{}", "NaN", "01"]),
)


@st.composite
def bodies(draw):
    """Mostly sound, with keys of ours at every place, twice at times, and spaces wherever they may be."""
    usual = [("model", '"llama"'), ("messages", "[{}]"), ("prompt", '"p"'), ("max_tokens", "9")]
    members = draw(st.lists(st.one_of(st.sampled_from(usual), st.tuples(KEYS, VALUES)), max_size=6))
    space = lambda: draw(SPACES)  # noqa: E731
    written = [f'{space()}"{key}"{space()}:{space()}{value}{space()}' for key, value in members]
    return f"{space()}{{{','.join(written)}}}{space()}".encode()


def told(envelope, body):
    envelope.locate(body)
    return {**msgspec.structs.asdict(envelope), "marks": None}


@given(body=bodies(), operation=st.sampled_from(["chat", "completions", "embeddings"]))
@settings(max_examples=600)
def test_what_is_read_the_short_way_is_what_the_long_way_reads(body, operation):
    short = read(body, operation)
    if short is None:
        return
    long = parse(body, operation)  # and it refuses nothing that the short way takes

    for upstream in ("llama", "up"):
        for ask in (None, "final", "continuous"):
            for cap in {None, 12 if short.cap is None else None}:
                for salt in (None, "s"):
                    how = {"upstream_model": upstream, "ask_usage": ask}
                    how |= {"inject_cap": cap, "cache_salt": salt}
                    assert edit(body, short, **how) == edit(body, long, **how)
    assert told(short, body) == told(long, body)


@pytest.mark.parametrize("text", [b"[]", b'[{"role":"user","content":"x"}]', b'[["\\u00e9"],{}]'])
@pytest.mark.parametrize(
    "around",
    [
        b' { "model" : "m\xc3\xb6", "messages": %b ,"stream":true}',
        b'{"messages":%b,"max_tokens":7,"model":"m"}',
        b'{"messages":%b,"seed":[1,2],"model":"m","x":"' + b"x" * 2_000 + b'"}',
    ],
)
def test_what_was_said_around_another_text_is_read_alike(around, text):
    for each in (b"[1]", text):  # the first is read anew, the second known
        short, long = read(around % each, "chat"), parse(around % each, "chat")

        assert told(short, around % each) == told(long, around % each)
        how = {"upstream_model": "up", "ask_usage": None, "inject_cap": None, "cache_salt": "s"}
        assert edit(around % each, short, **how) == edit(around % each, long, **how)


@pytest.mark.parametrize(
    ("beside", "kept"),
    [
        (b'"temperature":0.5,"stream":true,"logprobs":null', True),
        (b'"suffix":"a secret"', False),
        (b'"suffix":"a:secret"', False),
        (b'"stop":["a secret"]', False),
        (b'"metadata":{"a":"secret"}', False),
        (b'"metadata" : "secret"', False),
    ],
)
def test_no_words_of_a_caller_are_kept(monkeypatch, beside, kept):
    known = {}
    monkeypatch.setattr(everyday, "_kept", known)
    for text in (b'"once"', b'"twice"'):
        assert read(b'{"model":"m","prompt":%b,%b}' % (text, beside), "completions") is not None

    assert len(known) == (1 if kept else 0)
    assert b"once" not in b"".join(around for _, around, _ in known)


def test_what_is_kept_is_bounded(monkeypatch):
    known = {}
    monkeypatch.setattr(everyday, "_kept", known)
    for seed in range(3000):
        assert read(b'{"model":"m","prompt":"x","seed":%d}' % seed, "completions") is not None

    assert 0 < len(known) <= 1024


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (CHAT, "chat"),
        (b'{"model":"m","messages":[],"temperature":1.5,"stream":true,"seed":null}', "chat"),
        ('{ "model" : "mödel", "messages": [ {"content":"日本"} ] }'.encode(), "chat"),
        (b'{"messages":[],"model":"m","max_completion_tokens":3,"max_tokens":2}', "chat"),
        (b'{"model":"m","prompt":"once"}', "completions"),
        (b'{"model":"m","messages":[{"content":"say \\"model\\": x"}]}', "chat"),
        (b'{"messages":[{"user":1,"content":"caf\\u00e9"}],"model":"m","stop":"\\n"}', "chat"),
        (b'{"prompt":"caf\\u00e9","max_tokens":0,"model":"m"}', "completions"),
    ],
)
def test_everyday_bodies_go_the_short_way(body, operation):
    assert read(body, operation) is not None


@pytest.mark.parametrize(
    "body",
    [
        CHAT.replace(b"llama", b"l\\u0061ma"),
        CHAT[:-1] + b',"model":"other"}',
        CHAT[:-1] + b',"mod\\u0065l":"other"}',
        CHAT[:-1] + b',"x":{"model":"inner"}}',
        CHAT[:-1] + b',"priority":1}',
        CHAT[:-1] + b',"x":{"messages":[{"role":"user","content":"hi"}]}}',
        b'{"model":"m","x":{"messages":[1]},"priority":1,"messages":[{"content":"as long as that"}]}',
        CHAT[:-1] + b',"prompt":"x"}',
        CHAT[:-1] + b',"n":2}',
        CHAT.replace(b"5", b"-5"),
        CHAT.replace(b"5", b"null"),
        CHAT.replace(b"hi", b"\xff"),
        CHAT.replace(b"hi", b"data:image/png;base64,AAAA"),
        CHAT.replace(b"[", b"[" * 70).replace(b"]", b"]" * 70),
        CHAT.replace(b'"hi"', b"NaN"),
        CHAT.replace(b'"llama"', b'""'),
        CHAT.replace(b"llama", b"l" * 257),
        CHAT.replace(b"hi", b"h" * BODY_BYTES_MAX),
        CHAT[:-1] + b',"x":1' * 1100 + b"}",
        CHAT + b"x",
        CHAT[:-1],
        b"[]",
        b"",
    ],
)
def test_every_other_body_goes_the_long_way(body):
    assert read(body, "chat") is None


def test_a_seeded_second_reading_would_be_seen():
    """The comparison above has teeth: a reader that takes the first of two models differs."""
    body = b'{"model":"a","messages":[],"model":"b"}'

    assert json.loads(body)["model"] == "b"
    with pytest.raises(InvalidBody):
        parse(body, "chat")
    assert read(body, "chat") is None
