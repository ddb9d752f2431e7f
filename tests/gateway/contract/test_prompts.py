"""Only a prompt that is text and nothing else is bounded by its bytes."""

import json

import pytest

from gateway.contract.envelope import parse
from gateway.contract.prompts import text_only

PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def chat(messages, **fields):
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    return text_only(body, parse(body, "chat"))


def test_strings_and_text_parts_are_text():
    assert chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=5, user="u")
    assert chat([{"role": "system", "content": [{"type": "text", "text": "a"}]}])
    assert chat([{"role": "user", "content": "hi"}], priority=3)  # dropped on the way


def test_prompts_and_inputs_are_text():
    for operation, field in (("completions", "prompt"), ("embeddings", "input")):
        for value in ("hi", ["a", "b"], [1, 2, 3], [[1], [2, 3]]):
            body = json.dumps({"model": "m", field: value}).encode()
            assert text_only(body, parse(body, operation))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "tool", "content": "a", "tool_call_id": "1"}],
        [{"role": "user", "content": 5}],
        ["hi"],
    ],
)
def test_what_is_rendered_by_rules_of_its_own_is_not(messages):
    assert not chat(messages)


def test_an_escaped_name_is_read_as_what_it_says():
    body = (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"\\u0069mage_url",'
        b'"\\u0069mage_url":{"url":"x"}}]}]}'
    )
    assert not text_only(body, parse(body, "chat"))


@pytest.mark.parametrize("field", ["tools", "documents", "chat_template_kwargs", "made_up"])
def test_a_field_that_a_template_may_render_is_not(field):
    assert not chat([{"role": "user", "content": "hi"}], **{field: []})
