"""Edits of bytes: what is declared changes, everything else is as the caller wrote it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.edits import edit
from gateway.contract.envelope import parse
from gateway.contract.spans import PRIVILEGED, Scan

ASKED = {"include_usage": True, "continuous_usage_stats": True}
OURS = {"model", "stream_options", "max_tokens", "cache_salt"}


def edited(body, *, model="up", usage=None, cap=None, salt=None, operation="chat"):
    return edit(
        body,
        parse(body, operation),
        upstream_model=model,
        ask_usage=usage,
        inject_cap=cap,
        cache_salt=salt,
    )


def pairs(body):
    """Strict: no key twice, at any depth that we edit."""

    def once(found):
        assert len({key for key, _ in found}) == len(found)
        return dict(found)

    return json.loads(body, object_pairs_hook=once)


def test_nothing_to_change_is_the_same_object():
    body = b'{"model":"up","messages":[]}'

    assert edited(body) is body


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"model":"m","messages":[]}', b'{"model":"up","messages":[]}'),
        (b'{ "model" : "m" , "messages":[] }', b'{ "model" : "up" , "messages":[] }'),
        (b'{"messages":[{"model":"m"}],"model":"m"}', b'{"messages":[{"model":"m"}],"model":"up"}'),
        (b'{"m\\u006fdel":"\\u006d","messages":[]}', b'{"m\\u006fdel":"up","messages":[]}'),
        (b'{"model":"u\\u0070","messages":[]}', b'{"model":"u\\u0070","messages":[]}'),
    ],
)
def test_model_is_replaced_where_the_name_differs(body, changed):
    assert edited(body) == changed


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"priority":1,"model":"up","messages":[]}', b'{"model":"up","messages":[]}'),
        (b'{"model":"up","priority":{"a":[1,2]} , "messages":[]}', b'{"model":"up","messages":[]}'),
        (b'{"model":"up","messages":[] , "priority":1 }', b'{"model":"up","messages":[] }'),
        (b'{"priority":1,"model":"up","vllm_xargs":{},"messages":[],"request_id":"x","session_id":1}',
         b'{"model":"up","messages":[]}'),
        (b'{"\\u0070riority":1,"messages":[],"model":"up"}', b'{"messages":[],"model":"up"}'),
        (b'{"prompt_embeds":"","cache_salt":"a","model":"up","messages":[]}',
         b'{"model":"up","messages":[]}'),
    ],
)  # fmt: skip
def test_privileged_fields_go_with_one_comma_each(body, changed):
    assert edited(body) == changed


@pytest.mark.parametrize(
    ("options", "wanted", "changed"),
    [
        (None, "continuous", b'{"stream_options":{"include_usage":true,"continuous_usage_stats":true},'),
        (b"null", "final", b'"stream_options":{"include_usage":true}'),
        (b"{ }", "final", b'"stream_options":{"include_usage":true}'),
        (b'{"a":1}', "final", b'"stream_options":{"include_usage":true,"a":1}'),
        (b'{ "include_usage" : false }', "final", b'"stream_options":{ "include_usage" : true }'),
        (b'{"include_usage":null,"a":1}', "continuous",
         b'"stream_options":{"continuous_usage_stats":true,"include_usage":true,"a":1}'),
        (b'{"include_us\\u0061ge":false}', "final", b'"stream_options":{"include_us\\u0061ge":true}'),
        (b'{"continuous_usage_stats":true}', "final",
         b'"stream_options":{"include_usage":true,"continuous_usage_stats":true}'),
    ],
)  # fmt: skip
def test_usage_is_asked_for_inside_what_is_there(options, wanted, changed):
    inside = b"" if options is None else b'"stream_options":' + options + b","
    body = b'{"model":"up","stream":true,' + inside + b'"messages":[]}'

    assert changed in edited(body, usage=wanted)
    assert "include_usage" in pairs(edited(body, usage=wanted))["stream_options"]


def test_only_streams_are_asked_for_usage():
    body = b'{"model":"up","messages":[]}'

    assert edited(body, usage="continuous") is body


def test_cap_takes_the_place_of_null_or_comes_first():
    absent = b'{"model":"up","messages":[]}'
    null = b'{"model":"up","max_tokens" : null,"messages":[]}'

    assert edited(absent, cap=9) == b'{"max_tokens":9,"model":"up","messages":[]}'
    assert edited(null, cap=9) == b'{"model":"up","max_tokens" : 9,"messages":[]}'


def test_salt_takes_the_place_of_the_callers():
    body = b'{"cache_salt":"theirs","model":"up","messages":[]}'

    assert edited(body, salt='o"urs') == b'{"cache_salt":"o\\"urs","model":"up","messages":[]}'


keys = st.one_of(
    st.text(max_size=6), st.sampled_from(["temperature", "tools", "chat_template_kwargs"])
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just('","priority":1'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
options = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "include_usage": st.sampled_from([True, False, None]),
            "continuous_usage_stats": st.sampled_from([True, False, None]),
            "other": values,
        },
    ),
)
requests = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "up", 'a"b', "é"]), "messages": st.lists(values, max_size=2)},
    optional={
        "stream": st.sampled_from([True, False, None]),
        "stream_options": options,
        "max_tokens": st.sampled_from([None, 5]),
        **dict.fromkeys(PRIVILEGED, values),
    },
)


@given(
    requests,
    st.dictionaries(keys, values, max_size=3),
    st.randoms(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", "\t: ")]),
    st.booleans(),
    st.sampled_from(["continuous", "final", None]),
    st.sampled_from([None, 77]),
    st.sampled_from([None, "salt"]),
)
def test_edited_bodies_say_what_they_must_and_keep_every_other_byte(
    known, unknown, shuffler, separators, ascii_only, usage, cap, salt
):
    fields = list({**{k: v for k, v in unknown.items() if k not in known}, **known}.items())
    shuffler.shuffle(fields)
    fields = dict(fields)
    body = json.dumps(fields, separators=separators, ensure_ascii=ascii_only).encode()
    cap = None if fields.get("max_tokens") is not None else cap

    sent = edited(body, usage=usage, cap=cap, salt=salt)

    wanted = {key: value for key, value in fields.items() if key not in PRIVILEGED}
    wanted["model"] = "up"
    if usage and fields.get("stream"):
        told = {"continuous": ASKED, "final": {"include_usage": True}}[usage]
        wanted["stream_options"] = {**(fields.get("stream_options") or {}), **told}
    if cap is not None:
        wanted["max_tokens"] = cap
    if salt is not None:
        wanted["cache_salt"] = salt
    assert pairs(sent) == wanted
    before, after = members(body), members(sent)
    kept = [key for key in before if key not in PRIVILEGED]
    assert [key for key in after if key in kept] == kept
    for key in before.keys() - PRIVILEGED - OURS:
        assert after[key] == before[key]


def members(body):
    scan = Scan(body)
    scan.finish()
    return {each.key: body[each.start : each.end] for each in scan.members}


def test_eight_megabytes_are_edited_without_a_parse():
    text = b'"' + b"x" * (8 << 20) + b'"'
    body = b'{"model":"m","priority":1,"messages":[' + text + b"]}"

    assert edited(body) == b'{"model":"up","messages":[' + text + b"]}"
