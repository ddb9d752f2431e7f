"""Counts out of frames, and the frames less what is ours to take out."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.sse import FrameSplitter, Kind, kind_of
from gateway.contract.usage import (
    PLAIN_OBJECT,
    Seen,
    UsageFold,
    cut,
    error_in,
    fold_unary,
    rename,
    tell_cost,
)

CONTINUOUS = {
    "chat_stream_continuous.body": (1, 1),
    "chat_stream_continuous_n2.body": (1, 2),
    "completions_stream_continuous.body": (2, 1),
    "chat_cached_again.body": (1, 1),
}
FINALS = {
    "chat_stream_continuous.body": (16, 5, 0),
    "chat_stream_continuous_n2.body": (16, 8, 0),
    "completions_stream_continuous.body": (12, 8, 0),
    "chat_cached_again.body": (312, 3, 256),
}


def frames_of(stream):
    return [frame for frame in FrameSplitter().feed(stream) if kind_of(frame) is Kind.OBJECT]


def payload(frame):
    return json.loads(frame.removeprefix(b"data:"))


def folded(frames, prompts=1, n=1):
    fold = UsageFold(prompts, n)
    for frame in frames:
        fold.look(frame)
    return fold


def counts(fold):
    return fold.prompt, fold.completion, fold.cached, fold.reasoning


def framed(**chunk):
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def chunk(text, index=0, usage=None, finish=None, **more):
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    shown = {} if usage is None else {"usage": usage}
    return framed(id="x", model="up", choices=[choice], **shown, **more)


def usage(prompt, completion, **more):
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        **more,
    }


# -- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_recorded_streams_end_with_the_engines_own_totals(recorded, name):
    fold = folded(frames_of(recorded(name)), *CONTINUOUS[name])

    assert (fold.prompt, fold.completion, fold.cached) == FINALS[name]
    assert fold.final
    assert fold.any_token
    assert fold.reasoning is None
    assert not fold.void_finish


@pytest.mark.parametrize("name", CONTINUOUS)
def test_counts_before_the_final_frame_already_add_up_to_it(recorded, name):
    """Per-choice counts sum to the totals, prompts once each: what an abort is billed by."""
    *before, last = frames_of(recorded(name))
    fold = folded(before, *CONTINUOUS[name])

    assert not fold.final
    total = payload(last)["usage"]
    assert (fold.prompt, fold.completion) == (total["prompt_tokens"], total["completion_tokens"])
    assert fold.cached is None


@pytest.mark.parametrize("name", CONTINUOUS)
def test_counts_never_go_down_while_a_stream_runs(recorded, name):
    fold = UsageFold(*CONTINUOUS[name])
    before = 0
    for frame in frames_of(recorded(name)):
        fold.look(frame)
        assert fold.completion >= before
        before = fold.completion


def test_looks_tell_counts_from_their_absence(recorded):
    fold = UsageFold(1, 1)
    looks = [fold.look(frame) for frame in frames_of(recorded("chat_stream_continuous.body"))]
    none = [UsageFold(1, 1).look(frame) for frame in frames_of(recorded("chat_stream.body"))]

    assert looks == [Seen.PARTIAL] * 6 + [Seen.FINAL]
    assert [bool(look) for look in none] == [False] * 6
    assert [look.final for look in looks] == [False] * 6 + [True]


def test_none_is_not_zero(recorded):
    assert counts(folded(frames_of(recorded("chat_stream.body")))) == (None, None, None, None)
    assert counts(folded([chunk("", usage=usage(16, 0))])) == (16, 0, None, None)


def test_usage_null_carries_no_counts():
    fold = UsageFold(1, 1)

    assert not fold.look(b'data: {"choices":[{"index":0}],"usage":null}\n\n')
    assert fold.prompt is None


def test_prompt_counts_once_per_prompt_whichever_choice_is_seen_first():
    fold = UsageFold(2, 2)
    for index, prompt in ((3, 5), (1, 7), (2, 5), (0, 7)):
        fold.look(chunk("a", index, usage(prompt, 1)))

    assert (fold.prompt, fold.completion) == (12, 4)


def test_final_frame_replaces_what_was_counted_and_stands():
    fold = UsageFold(1, 2)
    fold.look(chunk("a", 0, usage(9, 30)))
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    reasoned = {"completion_tokens_details": {"reasoning_tokens": 3}}
    final = framed(choices=[], usage=usage(10, 20, **details, **reasoned))

    assert fold.look(final) is Seen.FINAL
    assert counts(fold) == (10, 20, 4, 3)
    fold.look(chunk("late", 0, usage(1, 1)))
    assert counts(fold) == (10, 20, 4, 3)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
@pytest.mark.parametrize("usage_first", [True, False])
def test_other_engines_spellings_are_read_too(separators, usage_first):
    def spelled(choices, counted):
        pair = {"usage": counted, "choices": choices}
        if not usage_first:
            pair = dict(reversed(pair.items()))
        return b"data: " + json.dumps(pair, separators=separators).encode() + b"\n\n"

    fold = UsageFold(1, 2)
    one = {"completion_tokens": 3, "prompt_tokens": 8}
    for index in (0, 1):
        delta = {"tool_calls": [{"index": 5}]}
        assert fold.look(spelled([{"delta": delta, "index": index}], one)) is Seen.PARTIAL
    assert (fold.prompt, fold.completion) == (8, 6)
    assert fold.look(spelled([], {"prompt_tokens": 8, "completion_tokens": 7})) is Seen.FINAL
    assert (fold.prompt, fold.completion) == (8, 7)


def test_one_chunk_for_several_choices_owns_no_count():
    fold = UsageFold(1, 2)
    choices = [{"index": 0, "delta": {}}, {"index": 1, "delta": {}}]

    assert fold.look(framed(choices=choices, usage=usage(3, 2))) is Seen.PARTIAL
    assert fold.completion is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: \n\n",
        b"data: {\n\n",
        b'data: {"usage":{\n\n',
        b'data: {"usage":{}}\n\n',
        b'data: {"choices":[],"usage":{}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":"x"}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":-4,"completion_tokens":true}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1e9,"completion_tokens":null}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":99999999999999999999999}}\n\n',
        b'data: {"choices":[{"index":"a"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b'data: {"choices":{},"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b'data: {"usage":[1]}\n\n',
        b'data: {"usage":"usage"}\n\n',
        b"data: \xff\xfe\n\n",
        b"event: x\n\n",
    ],
)
def test_garbage_changes_no_count_and_raises_nothing(garbage):
    fold = UsageFold(2, 2)
    fold.look(garbage)
    cut(garbage)
    rename(garbage, "up", "public")
    error_in(garbage)
    fold_unary(fold, garbage)

    assert counts(fold) == (None, None, None, None)


# -- how it ended -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "void"),
    [
        ([], False),
        ([chunk("", finish="error")], True),
        ([chunk("", finish="abort")], True),
        ([chunk("", finish="")], True),
        ([chunk("")], True),
        ([chunk("", finish="stop")], False),
        ([chunk("word"), chunk("")], False),
        ([chunk("word"), chunk("", finish="error")], False),
        ([chunk("", usage=usage(4, 2)), chunk("", finish="error")], False),
        ([chunk("", usage=usage(4, 0)), chunk("", usage=usage(4, 0), finish="error")], True),
        ([chunk("", usage=usage(4, 0)), chunk("", usage=usage(4, 0), finish="stop")], False),
        ([framed(choices=[], usage=usage(4, 0))], False),
    ],
)
def test_void_finish_is_no_token_and_no_finish_worth_the_name(frames, void):
    assert folded(frames).void_finish is void


def test_embeddings_are_never_void():
    fold = UsageFold(1, 1)
    fold_unary(fold, b'{"object":"list","data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}')

    assert not fold.void_finish
    assert counts(fold) == (3, None, None, None)
    assert fold.final


# -- edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_cut_leaves_every_other_byte(recorded, name):
    for frame in frames_of(recorded(name)):
        edited = cut(frame)
        told = payload(frame)
        if not told["choices"]:
            assert edited is None
            continue
        del told["usage"]
        assert payload(edited) == told
        start = next(
            at for at, pair in enumerate(zip(frame, edited, strict=False)) if len(set(pair)) > 1
        )
        removed = len(frame) - len(edited)
        assert edited == frame[:start] + frame[start + removed :]


@pytest.mark.parametrize(
    "usage", [b'{"a":1,"b":}', b'{"a":1,"b}', b'{"a":1"b":2}', b'{"a":1,}', b"{}", b'{"a":-}']
)
def test_usage_that_is_no_object_is_never_taken_for_a_plain_one(usage):
    assert PLAIN_OBJECT.match(usage) is None


def test_frames_without_usage_are_the_same_object(recorded):
    for frame in frames_of(recorded("chat_stream.body")):
        assert cut(frame) is frame


@pytest.mark.parametrize(
    ("frame", "edited"),
    [
        (b'data: {"usage":{"a":1},"choices":[1]}\n\n', b'data: {"choices":[1]}\n\n'),
        (b'data: {"usage" : {"a":1} , "choices":[1]}\n\n', b'data: {"choices":[1]}\n\n'),
        (b'data: {"choices":[1], "usage": {"a":{"b":2}}, "z":1}\n\n', b'data: {"choices":[1], "z":1}\n\n'),
        (b'data: {"choices":[1] ,\t"usage":{} }\n\n', b'data: {"choices":[1]  }\n\n'),
        (b'data: {"usage":{"a":1}}\n\n', b"data: {}\n\n"),
        (b'data: {"choices":[{}],"usage":{"}\\"{":1}}\n\n', b'data: {"choices":[{}]}\n\n'),
        (b'data: {"choices":[{}],"usage":{"a":"}","b":{"c":"{"}}}\n\n', b'data: {"choices":[{}]}\n\n'),
        (b'data: {"choices": [ ], "usage": {"a":1}}\n\n', None),
        (b'data: {"choices":[],"usage":null}\n\n', b'data: {"choices":[],"usage":null}\n\n'),
    ],
)  # fmt: skip
def test_cut_takes_one_comma_along(frame, edited):
    assert cut(frame) == edited


nasty = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ['"usage":{"prompt_tokens":1}', '\\"usage\\":{', '},"usage":{', '"model":"up"', '"choices":[]',
         '"error":', "data: [DONE]", '"index":9', "\\", '"', "}],"]
    ),
)  # fmt: skip
separators = st.sampled_from([(",", ":"), (", ", ": ")])


@given(nasty, st.integers(0, 999), st.integers(0, 999), st.booleans(), separators, st.booleans())
def test_text_that_looks_like_keys_is_never_taken_for_one(text, prompt, made, late, spaced, escape):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    told = {"id": text, "model": "up", "choices": [choice], "usage": usage(prompt, made)}
    if late:
        told["system_fingerprint"] = text
    frame = b"data: " + json.dumps(told, separators=spaced, ensure_ascii=escape).encode() + b"\n\n"
    fold = UsageFold(1, 1)

    assert fold.look(frame) is Seen.PARTIAL
    assert (fold.prompt, fold.completion) == (prompt, made)
    assert error_in(frame) is None
    assert kind_of(frame) is Kind.OBJECT
    assert payload(rename(frame, "up", "public")) == {**told, "model": "public"}
    assert payload(rename(frame, "other", 'pub"lic')) == {**told, "model": 'pub"lic'}
    del told["usage"]
    assert payload(cut(frame)) == told


def test_rename_changes_the_model_alone(recorded):
    for frame in frames_of(recorded("chat_stream_continuous.body")):
        renamed = rename(frame, "tiny-llama", "acme/llama")
        assert renamed == frame.replace(b'"tiny-llama"', b'"acme/llama"')


def test_rename_hides_whatever_name_the_engine_gives():
    frame = b'data: {"model" : "/models/\\"x\\"", "choices":[]}\n\n'

    assert rename(frame, "up", "llama") == b'data: {"model" : "llama", "choices":[]}\n\n'
    assert rename(b"data: {}\n\n", "up", "llama") == b"data: {}\n\n"


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'{"error":{"message":"boom","code":500}}', {"error": {"message": "boom", "code": 500}}),
        (b'{"id":"x","choices":[],"error":{"message":"late"}}', {"message": "late"}),
        (b'{"error":"Unauthorized"}', {"error": "Unauthorized"}),
        (b'{"object":"error","message":"old","code":400}', {"message": "old"}),
        (b'{"error":null,"choices":[]}', None),
        (b'{"choices":[{"finish_reason":"error"}]}', None),
        (b'{"choices":[{"delta":{"content":"\\"error\\":1"}}]}', None),
        (b'{"error":{"code":1e999}}', {"error": {}}),
        (b'{"error":', {"error": {}}),
    ],
)
def test_error_events_are_told_from_text_about_errors(event, said):
    found = error_in(b"data: " + event + b"\n\n")

    if said is None:
        assert found is None
    else:
        error = json.loads(found)["error"]
        wanted = said.get("error", said)
        assert error == wanted or wanted.items() <= error.items()


# -- whole answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "total"), [("chat", (16, 5, 0)), ("completions", (7, 5, 0))])
def test_recorded_answers_are_counted_and_renamed(recorded, name, total):
    body = recorded(f"{name}.body")
    fold = UsageFold(1, 1)
    fold_unary(fold, body)

    assert (fold.prompt, fold.completion, fold.cached) == total
    assert fold.final
    assert not fold.void_finish
    renamed = rename(body, "tiny-llama", "public")
    assert renamed == body.replace(b'"tiny-llama"', b'"public"')


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_large_answers_are_counted_from_their_end_and_fast(separators):
    told = {
        "model": "up",
        "choices": [{"index": 0, "message": {"content": '"usage":{' * 200_000}, "finish_reason": "stop"}],
        "usage": usage(7, 9, prompt_tokens_details={"cached_tokens": 2}),
        "metrics": None,
    }  # fmt: skip
    body = json.dumps(told, separators=separators).encode()
    fold = UsageFold(1, 1)
    began = time.process_time()
    fold_unary(fold, body)
    took = time.process_time() - began

    assert counts(fold) == (7, 9, 2, None)
    assert took < 0.1
    assert not fold.void_finish


def test_large_answers_with_usage_first_are_counted_too():
    body = json.dumps({"usage": usage(7, 9), "data": [0.5] * 40_000}).encode()
    fold = UsageFold(1, 1)
    fold_unary(fold, body)

    assert counts(fold) == (7, 9, None, None)


def test_whole_answer_without_a_token_or_finish_is_void():
    fold = UsageFold(1, 1)
    choice = {"index": 0, "message": {"content": ""}, "finish_reason": None}
    fold_unary(fold, json.dumps({"choices": [choice], "usage": usage(3, 0)}).encode())

    assert fold.void_finish


@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"usage":' * 70_000,
        b'data: {"usage":{' * 60_000,
        b'data: {"usage" : {"a":{' * 45_000,
        b'data: {"choices":[{"index":0}],"x":"' + b"\\" * 1_000_000,
        b'data: {"model":"' + b"\\\\" * 500_000,
        b'data: "error"' + b"[" * 1_000_000,
        b"data: " + b'"choices":[ ' * 90_000,
    ],
)
def test_a_hostile_megabyte_takes_linear_time(frame):
    fold = UsageFold(2, 2)
    began = time.process_time()
    fold.look(frame)
    cut(frame)
    rename(frame, "up", "public")
    error_in(frame)
    fold_unary(fold, frame)

    assert time.process_time() - began < 1


COST = b'"cost":"0.01","currency":"USD"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1,"usage":{"x":1}}', b'{"a":1,"usage":{"x":1,%b}}'),
        (b'{"usage": {"x": {"y": 2} } ,"b":2}', b'{"usage": {"x": {"y": 2},%b} ,"b":2}'),
        (b'{"usage":{}}', b'{"usage":{%b}}'),
        (b'{"usage":{ }}', b'{"usage":{%b}}'),
        (b'{"usage":{"cost":5,"x":1}}', b'{"usage":{"x":1,%b}}'),
        (b'{"usage":null}', b'{"usage":null}'),
        (b'{"t":"\\"usage\\":{}"}', b'{"t":"\\"usage\\":{}"}'),
        (b'data: {"choices":[],"usage":{"x":1}}\n\n', b'data: {"choices":[],"usage":{"x":1,%b}}\n\n'),
    ],
)  # fmt: skip
def test_a_cost_is_told_at_the_end_of_usage_and_nowhere_else(before, after):
    assert tell_cost(before, COST) == after.replace(b"%b", COST)
