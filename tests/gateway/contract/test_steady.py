"""One step where it can be, with the result of the long way; never where it cannot."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.steady import BYTES_MAX, Steady
from gateway.contract.usage import UsageFold, cut, rename

NAMES = ("engine-model", "public/model-with-a-longer-name")


def event(content: str = "hi", completion: int = 7, **more: Any) -> bytes:
    usage = {"prompt_tokens": 16, "total_tokens": 16 + completion, "completion_tokens": completion}
    document = {
        "id": "chatcmpl-a918", "object": "chat.completion.chunk", "created": 1795412251,
        "model": NAMES[0],
        "choices": [{"index": 0, "delta": {"content": content}, "logprobs": None,
                     "finish_reason": None, "token_ids": None}],
        "usage": usage | {"completion_tokens_details": None},
    } | more  # fmt: skip
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return b"data: " + text + b"\n\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def the_long_way(frame: bytes, *, cuts: bool, names: tuple[str, str] | None) -> bytes:
    edited = cut(frame) if cuts else frame
    assert edited is not None
    return chunk(rename(edited, *names) if names else edited)


@pytest.mark.parametrize("names", [None, NAMES, (NAMES[0], "m")])
@pytest.mark.parametrize("cuts", [True, False])
@given(
    events=st.lists(
        st.tuples(st.text(max_size=300), st.integers(1, 10**9)), min_size=1, max_size=4
    ),
)
def test_it_gives_what_the_long_way_gives(
    names: tuple[str, str] | None, cuts: bool, events: list[tuple[str, int]]
) -> None:
    counted = UsageFold(1, 1)
    steady = Steady(counted, cuts_usage=cuts, names=names)
    for content, completion in events:
        frame = event(content, completion)
        out = steady.take(chunk(frame))
        if out is None:
            assert len(chunk(frame)) > BYTES_MAX or "error" in content
            continue
        assert out == the_long_way(frame, cuts=cuts, names=names)
        fold = UsageFold(1, 1)
        assert not fold.look(frame).final
        assert (counted.prompt, counted.completion) == (fold.prompt, fold.completion)


def test_a_prefix_that_changes_within_a_stream_is_seen() -> None:
    steady = Steady(UsageFold(1, 1), cuts_usage=True, names=NAMES)
    for created in (1, 1, 22, 22, 3):
        frame = event(created=created)
        assert steady.take(chunk(frame)) == the_long_way(frame, cuts=True, names=NAMES)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(chunk(event() + event()), id="two events in a chunk"),
        pytest.param(chunk(event()) * 2, id="two chunks"),
        pytest.param(chunk(event())[:-1], id="a chunk cut short"),
        pytest.param(chunk(event())[1:], id="not from its beginning"),
        pytest.param(chunk(event()[:-1]), id="an event cut short"),
        pytest.param(b"0" + chunk(event()), id="a size with a zero before it"),
        pytest.param(chunk(event()).replace(b"\r\n", b";x=y\r\n", 1), id="an extension"),
        pytest.param(b"13C" + chunk(event("hi1234"))[3:], id="a size in capitals"),
        pytest.param(chunk(b": hi\n" + event()), id="a comment before it"),
        pytest.param(chunk(b"id: 1\n" + event()), id="a field before it"),
        pytest.param(chunk(event()[:-1] + b"id: 1\n\n"), id="a field after it"),
        pytest.param(chunk(event().replace(b"\n\n", b"\r\n\r\n")), id="CRLF"),
        pytest.param(chunk(event().replace(b"hi", b"h\ri")), id="a bare CR"),
        pytest.param(chunk(b"data: [DONE]\n\n"), id="the end"),
        pytest.param(chunk(event(error={"message": "no"})), id="an error"),
        pytest.param(chunk(event(choices=[])), id="a final usage"),
        pytest.param(chunk(event(usage=None)), id="no usage"),
        pytest.param(chunk(event(more=1)), id="usage is not last"),
        pytest.param(chunk(event(usage={"prompt_tokens": 1, "completion_tokens": 2})), id="short"),
        pytest.param(chunk(event(usage={"completion_tokens": 2, "prompt_tokens": 1})), id="order"),
        pytest.param(chunk(event("x" * BYTES_MAX)), id="long"),
        pytest.param(chunk(event().replace(b'":', b'": ')), id="spaces"),
        pytest.param(chunk(event(model="another")), id="another model"),
        pytest.param(chunk(event().replace(b"null}}\n", b"}}\n")), id="usage without a value"),
        pytest.param(chunk(event().replace(b'_details":null}}\n', b"}}\n")), id="usage cut short"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"0\r\n\r\n", id="the last chunk"),
    ],
)
def test_anything_else_is_not_taken(read: bytes) -> None:
    assert len(event("hi1234")) == 0x13C, "a size with a letter, for the capitals"
    assert Steady(UsageFold(1, 1), cuts_usage=True, names=NAMES).take(read) is None


@given(st.binary(max_size=64), st.integers(0, 400), st.integers(0, 400))
def test_no_bytes_make_it_raise(noise: bytes, start: int, stop: int) -> None:
    good = chunk(event())
    Steady(UsageFold(1, 1), cuts_usage=True, names=NAMES).take(good[:start] + noise + good[stop:])
