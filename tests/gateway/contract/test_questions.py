"""What /tokenize is asked, made of the caller's own bytes; and what it answers."""

import json

import pytest

from gateway.contract import questions
from gateway.contract.envelope import parse
from gateway.contract.questions import Questions, count_in, of_prompt, of_texts


def asked(operation, **fields):
    body = json.dumps({"model": "llama", **fields}).encode()
    found = of_prompt(body, parse(body, operation), "meta/llama")
    if found is None:
        return None
    return [json.loads(each) for each in found.bodies], found.known


def test_a_conversation_is_asked_with_what_shapes_its_prompt():
    messages = [{"role": "user", "content": 'hello "GPU"'}]
    tools = [{"type": "function", "function": {"name": "f"}}]

    assert asked("chat", messages=messages, max_tokens=5) == (
        [{"model": "meta/llama", "messages": messages}],
        0,
    )
    assert asked("chat", messages=messages, tools=tools, temperature=0) == (
        [{"model": "meta/llama", "messages": messages, "tools": tools}],
        0,
    )


def test_a_prompt_and_an_input_are_texts():
    assert asked("completions", prompt="a b") == ([{"model": "meta/llama", "prompt": "a b"}], 0)
    assert asked("embeddings", input="a") == ([{"model": "meta/llama", "prompt": "a"}], 0)


def test_each_of_a_list_is_asked_and_tokens_need_no_asking():
    two = [{"model": "meta/llama", "prompt": text} for text in ("a", "b")]

    assert asked("completions", prompt=["a", "b"]) == (two, 0)
    assert asked("completions", prompt=[1, 2, 3]) == ([], 3)
    assert asked("completions", prompt=[[1, 2], [3]]) == ([], 3)


def test_what_is_no_text_or_too_much_is_not_asked(monkeypatch):
    picture = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]

    assert asked("chat", messages=[{"role": "user", "content": picture}]) is None
    assert asked("completions", prompt=["a"] * 17) is None
    monkeypatch.setattr(questions, "ASKED_BYTES_MAX", 50)
    assert asked("completions", prompt="a" * 60) is None
    monkeypatch.setattr(questions, "LIST_BYTES_MAX", 10)
    assert asked("completions", prompt=["a" * 20]) is None


def test_texts_are_asked_without_what_a_tokenizer_would_add():
    found = of_texts([b'say \\"hi\\"'], "m")

    assert [json.loads(each) for each in found.bodies] == [
        {"model": "m", "prompt": 'say "hi"', "add_special_tokens": False}
    ]
    assert of_texts([], "m") == Questions()
    assert of_texts(None, "m") is None


#: As vLLM 0.32 answered.
RECORDED = b'{"count":16,"max_model_len":4096,"tokens":[1,369,260,28],"token_strs":null}'


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (RECORDED, 16),
        (b'{"count":0}', 0),
        (b'{"count":-1}', None),
        (b'{"count":"16"}', None),
        (b'{"detail":"Not Found"}', None),
        (b"<html>", None),
        (b"\xff", None),
    ],
)
def test_an_answer_is_a_count_or_nothing(answer, count):
    assert count_in(answer) == count
