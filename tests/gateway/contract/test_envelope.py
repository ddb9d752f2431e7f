"""What is read of a body, and what is refused with its path."""

import json
import time
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.contract.envelope import (
    BOUNDS,
    CHOICES_MAX,
    OPERATIONS,
    Bounds,
    Operation,
    parse,
    scan,
)
from gateway.contract.errors import InvalidBody
from gateway.contract.media import MEDIA_BYTES

CHAT = {"model": "m", "messages": []}


def chat(**fields):
    return parse(json.dumps({**CHAT, **fields}).encode(), "chat")


def completions(prompt="hi", **fields):
    return parse(json.dumps({"model": "m", "prompt": prompt, **fields}).encode(), "completions")


def embeddings(**fields):
    return parse(json.dumps({"model": "m", **fields}).encode(), "embeddings")


def test_operations_are_listed_in_the_order_of_their_numbers():
    assert get_args(Operation) == OPERATIONS == ("chat", "completions", "embeddings")


@pytest.mark.parametrize(
    ("name", "operation", "read"),
    [
        ("chat", "chat", (False, False, False, 1, 1, 5)),
        ("chat_stream", "chat", (True, False, False, 1, 1, 5)),
        ("chat_stream_continuous_n2", "chat", (True, True, True, 2, 1, 4)),
        ("completions", "completions", (False, False, False, 1, 1, 5)),
        ("completions_stream_continuous", "completions", (True, True, True, 1, 2, 4)),
    ],
)
def test_recorded_requests_are_read(recorded, name, operation, read):
    body = recorded(f"{name}.request.json")
    seen = parse(body, operation)

    assert seen.model == "tiny-llama"
    assert read == (
        seen.stream, seen.include_usage, seen.continuous_usage, seen.n, seen.prompts, seen.cap
    )  # fmt: skip
    assert seen.text_bytes == len(body)
    assert seen.dropped == ()


def test_absent_and_null_are_the_same():
    nulls = (
        "stream",
        "stream_options",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "user",
    )
    bare, null = chat(), chat(**dict.fromkeys(nulls))

    for seen in (bare, null):
        assert (seen.stream, seen.n, seen.cap, seen.user) == (False, 1, None, None)
        assert not seen.include_usage


def test_max_completion_tokens_is_read_before_max_tokens():
    assert chat(max_tokens=5).cap == 5
    assert chat(max_completion_tokens=7, max_tokens=5).cap == 7
    assert chat(max_completion_tokens=None, max_tokens=5).cap == 5
    assert chat(max_tokens=0).cap == 0


def test_completions_reserve_for_whichever_field_the_engine_reads():
    assert completions(max_tokens=50, max_completion_tokens=1).cap == 50
    assert completions(max_tokens=1, max_completion_tokens=50).cap == 50
    assert completions(max_completion_tokens=1).cap == 16


def test_default_caps_belong_to_the_operation():
    assert chat().default_cap is None
    assert (completions().cap, completions().default_cap) == (None, 16)
    assert (embeddings(input="a", max_tokens=9).cap, embeddings(input="a").default_cap) == (None, 0)


def test_choices_are_the_more_of_n_and_best_of():
    assert completions(n=2, best_of=5).n == 5
    assert completions(n=4).n == 4
    assert chat(n=CHOICES_MAX).n == CHOICES_MAX
    assert embeddings(input="a", n=5).n == 1


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("one", 1),
        ("", 1),
        (["a", "b", "c"], 3),
        ([""], 1),
        (["[", '"]', "a,b"], 3),
        ([1, 2, 3], 1),
        ([7], 1),
        ([[1, 2], [3]], 2),
        ([[]], 1),
        (["x"] * 2048, 2048),
        ([[1]] * 2048, 2048),
        ([1] * 100_000, 1),
    ],
)
@pytest.mark.parametrize("spaced", [True, False])
def test_prompts_are_counted_in_every_form(prompt, count, spaced):
    separators = (" ,\n", " : ") if spaced else (",", ":")
    for key, operation in (("prompt", "completions"), ("input", "embeddings")):
        body = json.dumps({"model": "m", key: prompt}, separators=separators).encode()
        assert parse(body, operation).prompts == count


def test_a_conversation_can_be_embedded():
    assert embeddings(messages=[]).prompts == 1


def test_privileged_fields_are_named_in_their_order():
    seen = chat(request_id="x", priority=1, cache_salt="y", chat_template_kwargs={})

    assert seen.dropped == ("request_id", "priority", "cache_salt")


def test_usage_is_asked_for_only_by_a_stream():
    options = {"include_usage": True, "continuous_usage_stats": True}

    assert not chat(stream_options=options).include_usage
    assert not chat(stream=True, stream_options={"continuous_usage_stats": True}).continuous_usage
    assert chat(stream=True, stream_options=options).continuous_usage
    assert not embeddings(input="a", stream=True, stream_options=options).stream


def test_a_scan_done_in_slices_gives_the_same_envelope():
    body = json.dumps({**CHAT, "messages": ["x" * 500_000], "stream": True}).encode()
    looked = scan(body)
    turns = sum(1 for _ in looked)

    assert turns >= 7
    assert parse(body, "chat", looked) == parse(body, "chat")


# -- refused ------------------------------------------------------------------------------------

WRONG: list[tuple[str, str, object]] = [
    ("model", "chat", {"messages": []}),
    *(("model", "chat", {**CHAT, "model": bad}) for bad in (None, "", 5, [], "m" * 257, True)),
    ("messages", "chat", {"model": "m"}),
    *(("messages", "chat", {"model": "m", "messages": bad}) for bad in (None, "hi", {}, 1, True)),
    *(("stream", "chat", {**CHAT, "stream": bad}) for bad in ("true", 1, 0, [], {}, 1.0)),
    *(("stream_options", "chat", {**CHAT, "stream_options": bad}) for bad in ([], "x", 1, True)),
    ("stream_options", "chat", {**CHAT, "stream_options": {"x": "y" * 5000}}),
    *(
        (f"stream_options.{key}", "chat", {**CHAT, "stream_options": {key: bad}})
        for key in ("include_usage", "continuous_usage_stats")
        for bad in ("true", 1, {}, [])
    ),
    *(
        (key, "chat", {**CHAT, key: bad})
        for key in ("n", "best_of")
        for bad in (0, -1, 9, 10**30, "2", 2.0, True, [])
    ),
    *(
        (key, "chat", {**CHAT, key: bad})
        for key in ("max_tokens", "max_completion_tokens")
        for bad in (-1, 1 << 31, 10**40, "5", 5.0, True, False, {})
    ),
    *(("user", "chat", {**CHAT, "user": bad}) for bad in (1, [], {}, True)),
    *(
        (key, operation, {"model": "m", **({} if bad is ... else {key: bad})})
        for key, operation in (("prompt", "completions"), ("input", "embeddings"))
        for bad in (
            ..., None, 5, {}, True, [], [None], [True], [1.5], [1, "a"], ["a", 1], ["a", None],
            [[1], "a"], [["a"]], [{}], [{"a": 1}], [[[1]]], [[1], None], ["x"] * 2049,
            [[1]] * 2049, [[]] * 5000, ["a", ["b"]], [[1], [True]], [-1.0],
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "operation", "fields"), WRONG)
def test_wrong_types_of_what_is_read_are_refused_with_their_path(path, operation, fields):
    with pytest.raises(InvalidBody) as refused:
        parse(json.dumps(fields).encode(), operation)

    assert refused.value.param == path
    assert refused.value.status == 400
    assert path in refused.value.message


M = 1 << 20
NO_JSON = [
    b"", b" ", b"null", b"1", b'"x"', b"[]", b"true", b"{", b"}", b"{}x", b"{,}", b'{"model"}',
    b'{"model":}', b'{"model":"m"', b'{"model":"m",}', b"{'model':'m'}", b'{model:"m"}',
    b'{"model":"m" "messages":[]}', b'{"model":"m";"messages":[]}', b"\xef\xbb\xbf{}",
    '{"model":"m","messages":[]}'.encode("utf-16"), b'{"model":"m","messages":[}',
    b'{"model":"m","messages":[],"x":NaN}', b'{"model":"m","messages":[],"x":Infinity}',
    b'{"model":"m","messages":[NaN]}', b'{"model":"m","messages":[{"x":-Infinity}]}',
    b'{"model":"m","messages":[],"x":01}', b'{"model":"m","messages":[],"x":+1}',
    b'{"model":"m","messages":[],"x":.5}', b'{"model":"m","messages":[],"x":1.}',
    b'{"model":"m","messages":[],"x":0x1}', b'{"model":"m","messages":[],"x":1e}',
    b'{"model":"m","messages":[],"x":tru}', b'{"model":"m","messages":[],"x":undefined}',
    b'{"model":"m","messages":[]}{"model":"m","messages":[]}', b'{"model":"m","messages":[]}\x00',
    b'{"model":"m","messages":[],"x":"\n"}', b'{"model":"m","messages":["\x00"]}',
    b'{"model":"m","messages":["\\x"]}', b'{"model":"m","messages":["\\u12g4"]}',
    b'{"model":"m","messages":["\\u12"]}', b'{"model":"m","messages":["\\"]}',
    b'{"model":"m","messages":["\xff"]}', b'{"model":"m","messages":["\xc3"]}',
    b'{"model":"\xed\xa0\x80","messages":[]}', b'{"\xff":1,"model":"m","messages":[]}',
    b'{"model":"m","messages":["\\ud800"]}', b'{"model":"\\ud800","messages":[]}',
    b'{"model":"\\udc00\\ud800","messages":[]}', b'{"model":"m","messages":[],"\\ud800":1}',
    b'{"model":"m","messages":[] /* no */}', b'{"model":"m","messages":[]} // no',
    b'{"model":"m","messages":[1 2]}', b'{"model":"m","messages":[1,]}', b'{"model":"m",,"messages":[]}',
    b'{"model":"m","messages":[]]', b'{"model":"m","messages":{]}', b'{"a":"' + b"\\" * 9 + b'"}',
    b'{"model":"m","model":"m","messages":[]}', b'{"model":"m","\\u006dodel":"n","messages":[]}',
    b'{"model":"m","messages":[],"messages":[]}', b'{"model":"m","messages":[],"n":1,"n":12}',
    b'{"model":"m","messages":[],"priority":1,"\\u0070riority":1}',
    b'{"model":"m","messages":[],"stream_options":{"include_usage":true,"include_usage":false}}',
    b'{"model":"m","messages":[],"stream_options":{"include_us\\u0061ge":true,"include_usage":true}}',
    b'{"model":"m","messages":' + b"[" * 65 + b"]" * 65 + b"}",
    b'{"model":"m","messages":[],"x":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}",
    b'{"model":"m","messages":' + b"[" * 100_000, b"[" * M, b'{"a":' * 200_000,
    b'{"model":"m","messages":[' + b"[" * M + b"]" * M + b"]}",
    b'{"model":"m","messages":[]' + b',"x":1' * 1100 + b"}",
    b'{"model":"m","messages":[],"' + b"k" * 1_100_000 + b'":1}',
    b'{"model":"m","messages":["' + b"\\" * M + b"]}", b'{"model":"m","messages":["' + b'\\"' * M,
    b'{"model":"' + b"m" * M + b'","messages":[]}', b" " * M, b'"' * M, b"\\" * M, b"\xff" * M,
    b'{"model":"m","messages":[]' + b',"x":[[[]]]' * 100_000 + b"}",
    b'{"model":"m","messages":[' + b"1e999999," * 100_000 + b"]}", b"{" * M, b'{"":' * 70 + b"}" * 70,
]  # fmt: skip


@pytest.mark.parametrize("body", NO_JSON, ids=range(len(NO_JSON)))
def test_hostile_bodies_are_refused_and_fast(body):
    began = time.thread_time()
    with pytest.raises(InvalidBody) as refused:
        parse(body, "chat")

    assert time.thread_time() - began < 1
    assert refused.value.status == 400
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b"[]," * (2 * M) + b"[]]}",
        b'{"model":"m","messages":[' + b'"",' * (2 * M) + b'""]}',
        b'{"model":"m","messages":["' + b'\\"' * (4 * M) + b'"]}',
        b'{"model":"m","messages":["' + b"\\\\" * (4 * M) + b'"]}',
        b'{"model":"m","messages":[],"x":"' + b"\\n" * (4 * M) + b'","x":1}',
        b'{"model":"m","messages":[],"x":[' + b"{}," * (2 * M) + b'{}],"x":1}',
        b'{"model":"m","messages":["' + "漢".encode() * (2 * M) + b'"]}',
        b'{"model":"m","messages":[],' + b" " * (8 * M) + b'"z":1}',
        b'{"model":"m","messages":[],"z":' + b"1" * (8 * M) + b"}",
        b'{"model":"m","prompt":[' + b"1," * (4 * M) + b'1],"messages":[]}',
        b'{"model":"m","messages":[],"x":1' + b',"y":[[[[]]]]' * 1000 + b"}",
    ],
    ids=range(11),
)
def test_eight_megabytes_never_hold_the_loop(body):
    """The longest step between two turns, in CPU time: the best of three, on a machine that is busy."""
    assert min(longest_step_s(body) for _ in range(3)) < 0.02


def longest_step_s(body):
    looked, longest, done = iter(scan(body)), 0.0, None
    while done != "done":
        before = time.thread_time()
        try:
            done = next(looked, "done")
        except InvalidBody:
            done = "done"
        longest = max(longest, time.thread_time() - before)
    return longest


LARGE = b'"x":"' + b"x" * 70_000 + b'",'


@pytest.mark.parametrize("filler", [b"", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{%b"model":"m","messages":[{"role":"user"},{"x":NaN}]}', "messages[1].x"),
        (b'{%b"model":"m","messages":[],"logit_bias":{"a b":-Infinity}}', 'logit_bias["a b"]'),
        (b'{%b"model":"m","messages":[{"content":"\xff"}]}', "messages[0].content"),
        (b'{%b"model":"m","messages":[{"content":"\\ud800\\ud800"}]}', "messages[0].content"),
        (b'{%b"model":"m","messages":["a\nb"]}', "messages[0]"),
        (b'{%b"model":"m","temperature":01,"messages":[]}', "temperature"),
        (b'{%b"model":tru,"messages":[]}', "model"),
        (b'{%b"model":"m","messages":[1,2,,3]}', "messages[2]"),
        (b'{%b"model":"m","messages":[1 2]}', "messages"),
        (b'{%b"model" "m"}', None),
    ],
)
def test_what_is_no_json_is_refused_with_the_path_of_where_it_breaks(body, path, filler):
    with pytest.raises(InvalidBody) as refused:
        parse(body.replace(b"%b", filler), "chat")

    assert refused.value.param == path
    assert refused.value.status == 400


@pytest.mark.parametrize("key", ["model", "user", "n", "max_tokens", "stream"])
def test_values_that_are_read_are_bounded_in_large_bodies(key):
    value = b'"' + b"x" * 70_000 + b'"' if key in ("model", "user") else b"1" * 70_000
    others = b"".join(
        b',"%b":%b' % each for each in ((b"model", b'"m"'),) if each[0].decode() != key
    )
    with pytest.raises(InvalidBody) as refused:
        parse(b'{"messages":[]%b,"%b":%b}' % (others, key.encode(), value), "chat")

    assert refused.value.param == key


bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "", 1, "é"]), "messages": st.just([{"role": "user", "content": "a"}])},
    optional={
        "stream": st.sampled_from([True, False, None, 1, "x"]),
        "n": st.sampled_from([1, 2, None, 9, 1.0]),
        "max_tokens": st.sampled_from([1, None, -1, "x"]),
        "stream_options": st.sampled_from([{}, None, {"include_usage": True}, []]),
        "x": st.recursive(st.integers() | st.text(), st.lists, max_leaves=5),
    },
)  # fmt: skip


@given(
    bodies,
    st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3), st.integers(0, 4)), max_size=4),
)
@example({"model": "m", "messages": []}, [(1, b"\\", 0)])
def test_what_passes_reads_the_same_to_the_engines_parser(fields, mutations):
    """Any damage is refused, or reads the same in another parser: nothing slips between the two."""
    body = json.dumps(fields).encode()
    for at, inserted, removed in mutations:
        body = body[:at] + inserted + body[at + removed :]
    try:
        seen = parse(body, "chat")
    except InvalidBody:
        return
    read = json.loads(body, parse_constant=pytest.fail)
    assert seen.model == read["model"]
    assert seen.stream == bool(read.get("stream"))
    assert seen.n == max(read.get("n") or 1, read.get("best_of") or 1)
    longer = read.get("max_completion_tokens")
    assert seen.cap == (read.get("max_tokens") if longer is None else longer)
    options = read.get("stream_options") or {}
    assert seen.include_usage == (seen.stream and bool(options.get("include_usage")))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for operation in OPERATIONS:
        with pytest.raises(InvalidBody):
            parse(data, operation)


def test_end_user_is_the_safety_identifier_before_the_user():
    assert chat(user="a").user == "a"
    assert chat(user="a", safety_identifier="b").user == "b"
    assert chat(user="a", safety_identifier=None).user == "a"


def test_encoded_pictures_are_not_counted_as_text():
    picture = "data:image/png;base64," + "A" * 400_000
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "x"}]
    seen = chat(messages=[{"role": "user", "content": content}])

    assert MEDIA_BYTES < seen.text_bytes < MEDIA_BYTES + 300
    assert chat(messages=[{"role": "user", "content": ";base64,abc"}]).text_bytes < 100


def refused_by(bounds, operation="chat", **fields):
    field = {"chat": "messages", "completions": "prompt"}[operation]
    body = json.dumps({"model": "m", field: [], **fields} | {field: fields.get(field, [])}).encode()
    with pytest.raises(InvalidBody) as refused:
        parse(body, operation, None, bounds)
    return refused.value.param


def test_policy_bounds_what_one_request_may_ask():
    tight = Bounds(
        choices_max=2, prompts_max=1, prompt_logprobs_max=0, ignore_eos=False, echo=False
    )

    assert refused_by(tight, n=3) == "n"
    assert refused_by(tight, "completions", prompt=["a", "b"]) == "prompt"
    assert refused_by(tight, prompt_logprobs=1) == "prompt_logprobs"
    assert refused_by(tight, ignore_eos=True) == "ignore_eos"
    assert refused_by(tight, "completions", prompt="a", echo=True) == "echo"
    assert refused_by(BOUNDS, min_tokens=-1) == "min_tokens"
    assert refused_by(BOUNDS, prompt_logprobs=21) == "prompt_logprobs"


def test_what_is_within_the_policy_passes():
    assert chat(min_tokens=5, ignore_eos=True, prompt_logprobs=0).min_tokens == 5
    tight = Bounds(ignore_eos=False, echo=False)
    body = json.dumps({**CHAT, "ignore_eos": False, "echo": None}).encode()
    assert parse(body, "chat", None, tight).min_tokens == 0
