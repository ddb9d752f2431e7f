"""The demo engine's objects have the keys of a recorded vLLM's, in its order and of its types."""

import json

import pytest

from gateway.demo import shapes
from tests.support.recordings import RECORDED


def shape_of(value):
    """Keys in order, and the kinds of leaves."""
    if isinstance(value, dict):
        return [(key, shape_of(each)) for key, each in value.items()]
    if isinstance(value, list):
        return [shape_of(each) for each in value]
    return type(value).__name__


def recorded_events(name):
    lines = (RECORDED / f"{name}.body").read_text().split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def began(recorded):
    return {key: recorded[key] for key in ("id", "object", "created", "model")}


def same(made, recorded):
    assert shape_of(made) == shape_of(recorded)


@pytest.mark.parametrize("name", ["chat_stream", "chat_stream_usage", "chat_stream_continuous"])
def test_chat_chunks_are_as_recorded(name):
    events = recorded_events(name)
    first, *rest = [event for event in events if event["choices"]]
    usage = shapes.running_usage(16, 0, chat=True) if "usage" in first else None
    same(shapes.role_chunk(began(first), 0, usage), first)
    for event in rest:
        [choice] = event["choices"]
        told = shapes.Told(0, choice["delta"]["content"], choice["finish_reason"])
        chunk = shapes.token_chunk(began(event), told, usage, chat=True, sign=name == "chat_stream")
        same(chunk, event)
    for event in events:
        if not event["choices"]:
            same(shapes.final_chunk(began(event), 16, 5, chat=True), event)


def test_completions_chunks_are_as_recorded():
    for event in recorded_events("completions_stream_continuous"):
        if not event["choices"]:
            same(shapes.final_chunk(began(event), 12, 8, chat=False), event)
            continue
        [choice] = event["choices"]
        told = shapes.Told(choice["index"], choice["text"], choice["finish_reason"])
        usage = shapes.running_usage(7, 1, chat=False)
        same(shapes.token_chunk(began(event), told, usage, chat=False), event)


@pytest.mark.parametrize(("name", "chat"), [("chat", True), ("completions", False)])
def test_whole_answers_are_as_recorded(name, chat):
    recorded = json.loads((RECORDED / f"{name}.body").read_text())
    usage = shapes.whole_usage(16, 5, chat=chat)

    same(shapes.whole(began(recorded), [shapes.Told(0, "x", "length")], usage, chat=chat), recorded)


@pytest.mark.parametrize(
    ("chat", "stream", "kind"),
    [
        (True, True, "chat.completion.chunk"),
        (True, False, "chat.completion"),
        (False, True, "text_completion"),
        (False, False, "text_completion"),
    ],
)
def test_objects_are_named_as_vllm_names_them(chat, stream, kind):
    made = shapes.head("ab", 1, "m", chat=chat, stream=stream)

    assert made["object"] == kind
    assert made["id"] == ("chatcmpl-ab" if chat else "cmpl-ab")
