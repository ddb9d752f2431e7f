"""What an answer said, kept by choice and still escaped; only frames as engines write them."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import transcript
from gateway.contract.transcript import KEPT_BYTES_MAX, Transcript


def frame(index, **delta):
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    body = {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def texts_of(kept):
    return [json.loads(b'"' + text + b'"') for text in kept.said()]


@given(st.lists(st.text(max_size=20), max_size=12))
def test_the_text_of_a_stream_comes_back_as_it_was_said(pieces):
    kept = Transcript(1, 1)
    for piece in pieces:
        kept.look(frame(0, content=piece))

    assert texts_of(kept) == (["".join(pieces)] if "".join(pieces) else [])


def test_choices_do_not_mix():
    kept = Transcript(1, 2)
    for index, piece in ((0, "a"), (1, "x"), (0, "b"), (1, "y")):
        kept.look(frame(index, content=piece))

    assert texts_of(kept) == ["ab", "xy"]


def test_thoughts_calls_and_names_are_said_too_and_roles_and_ids_are_not():
    kept = Transcript(1, 1)
    kept.look(frame(0, role="assistant", content=""))
    kept.look(frame(0, reasoning="hm "))
    call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    kept.look(frame(0, tool_calls=[{"index": 0, **call}]))

    assert texts_of(kept) == ['hm f{"a": 1}']


def test_a_text_that_quotes_a_frame_is_one_text():
    quoted = 'say "content": "no", "text":"\\"'
    kept = Transcript(1, 1)
    kept.look(frame(0, content=quoted))

    assert texts_of(kept) == [quoted]


def test_a_whole_answer_is_read_when_it_is_asked_for():
    body = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "one"}},
            {"index": 1, "message": {"role": "assistant", "content": "two"}},
        ]
    }
    kept = Transcript(1, 2)
    kept.note_choices(json.dumps(body).encode())

    assert texts_of(kept) == ["one", "two"]


def test_too_much_is_not_kept(monkeypatch):
    kept = Transcript(1, 1)
    monkeypatch.setattr(transcript, "KEPT_BYTES_MAX", 100)
    for _ in range(30):
        kept.look(frame(0, content="word word "))
    whole = Transcript(1, 1)
    whole.note_choices(b"{" + b" " * 200 + b"}")

    assert kept.said() is None
    assert kept._kept == {}
    assert whole.said() is None
    assert KEPT_BYTES_MAX == 1 << 20


def test_it_counts_as_any_fold_does():
    kept = Transcript(1, 1)
    kept.look(frame(0, content="a"))

    assert kept.any_token
    assert kept.completion is None
