"""Whole frames out of bytes cut anywhere; the bytes themselves never change."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.sse import (
    FRAME_BYTES_MAX,
    FrameSplitter,
    FrameTooLarge,
    Kind,
    data_of,
    kind_of,
)

STREAMS = (
    "chat_stream.body",
    "chat_stream_usage.body",
    "chat_stream_continuous.body",
    "chat_stream_continuous_n2.body",
    "completions_stream_continuous.body",
)
LINE_ENDS = (b"\n", b"\r\n", b"\r")


def fed(splitter, pieces):
    return [frame for piece in pieces for frame in splitter.feed(piece)]


def events(data):
    """The standard's parser, word for word: what each event says, and the comments beside it."""
    out, lines, at = [], [], 0
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end]
        at = end + 1
        if line[:1] == b":":
            continue
        if line:
            lines.append(line)
        elif lines:
            out.append(tuple(lines))
            lines = []
    return out


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_give_the_same_frames_wherever_they_are_cut(recorded, name):
    stream = recorded(name)
    whole = FrameSplitter().feed(stream)

    assert b"".join(whole) == stream
    assert all(frame.startswith(b"data: ") and frame.endswith(b"\n\n") for frame in whole)
    for cut in range(len(stream) + 1):
        splitter = FrameSplitter()
        assert fed(splitter, (stream[:cut], stream[cut:])) == whole
        assert splitter.pending == 0


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_give_the_same_frames_byte_by_byte(recorded, name):
    stream = recorded(name)

    pieces = [stream[at : at + 1] for at in range(len(stream))]
    assert fed(FrameSplitter(), pieces) == FrameSplitter().feed(stream)


lines = st.sampled_from(
    [
        b"data: {}",
        b"data: a",
        b": ping",
        b":",
        b"event: x",
        b"id: 1",
        b"data: [DONE]",
        b"retry",
        b"",
    ]
)


@given(
    st.lists(st.tuples(lines, st.sampled_from(LINE_ENDS)), max_size=24),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_bytes_in_are_bytes_out_and_each_event_has_its_own_frame(written, cuts):
    stream = b"".join(line + end for line, end in written)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = FrameSplitter()
    frames = fed(splitter, [stream[a:b] for a, b in pairwise(edges)])
    left = splitter.finish()

    assert b"".join(frames) + left == stream
    assert splitter.pending == 0
    apart = [event for frame in [*frames, left] for event in events(frame)]
    assert apart == events(stream)
    for frame in frames:
        said = events(frame)
        assert len(said) <= 1
        assert not said or frame[:1] not in b":\r\n"


@given(st.binary(max_size=300), st.integers(1, 7))
def test_any_bytes_come_out_as_they_went_in(data, size):
    splitter = FrameSplitter()
    frames = fed(splitter, [data[at : at + size] for at in range(0, len(data), size)])

    assert b"".join(frames) + splitter.finish() == data


def test_comment_lines_before_an_event_are_a_frame_of_their_own():
    frames = FrameSplitter().feed(b": keep-alive\n\n: ping\ndata: {}\n\n\ndata: {}\r\n\r\n")

    assert frames == [b": keep-alive\n\n", b": ping\n", b"data: {}\n\n", b"\n", b"data: {}\r\n\r\n"]


def test_pending_counts_what_is_held():
    splitter = FrameSplitter()

    assert splitter.feed(b"data: half") == []
    assert splitter.pending == 10
    assert splitter.feed(b"\n") == []
    assert splitter.pending == 11
    assert splitter.feed(b"\ndata") == [b"data: half\n\n"]
    assert splitter.pending == 4
    assert splitter.finish() == b"data"


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 1 << 22])
def test_frame_over_the_limit_is_refused(size):
    data = b"data: " + b"x" * FRAME_BYTES_MAX + b"\n\n"
    pieces = [data[at : at + size] for at in range(0, len(data), size)]

    with pytest.raises(FrameTooLarge):
        fed(FrameSplitter(), pieces)


def test_frame_of_300_kilobytes_passes():
    data = b"data: " + b"x" * 300_000 + b"\n\n"

    pieces = [data[at : at + 1448] for at in range(0, len(data), 1448)]
    assert fed(FrameSplitter(), pieces) == [data]


@pytest.mark.parametrize(
    "data",
    [b"data: " + b"x" * (FRAME_BYTES_MAX - 10), b"data: " + b"\rx" * 500_000, b":\n" * 500_000],
)
def test_a_megabyte_in_seven_byte_pieces_takes_linear_time(data):
    began = time.process_time()
    splitter = FrameSplitter()
    fed(splitter, [data[at : at + 7] for at in range(0, len(data), 7)])

    assert time.process_time() - began < 1.5
    assert splitter.finish() == data


# -- what a frame is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b'data: {"a":1}\n\n', Kind.OBJECT),
        (b'data:{"a":1}\r\n\r\n', Kind.OBJECT),
        (b'event: x\nid: 1\ndata: {"a":1} \n\n', Kind.OBJECT),
        (b'data: {"a":\ndata: 1}\n\n', Kind.OBJECT),
        (b": comment\n\n", Kind.OTHER),
        (b"event: ping\n\n", Kind.OTHER),
        (b"database: {}\n\n", Kind.OTHER),
        (b"\n", Kind.OTHER),
        (b"data: [DONE]\n\n", Kind.DONE),
        (b"data:[DONE]\r\r", Kind.DONE),
        (b"event: end\ndata: [DONE]\n\n", Kind.DONE),
        (b'data: "[DONE]"\n\n', Kind.GARBLED),
        (b"data\n\n", Kind.GARBLED),
        (b"data:\n\n", Kind.GARBLED),
        (b"data: [1]\n\n", Kind.GARBLED),
        (b'data: {"a":1\n\n', Kind.GARBLED),
        (b"data: hello}\n\n", Kind.GARBLED),
    ],
)
def test_a_frame_is_told_by_the_ends_of_its_data(frame, kind):
    assert kind_of(frame) is kind


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"data: a", b"data:", b"data", b"data:  b", b"event: x", b": c"]),
            st.sampled_from(LINE_ENDS),
        ),
        min_size=1,
    )
)
def test_data_is_what_the_standards_parser_reads(parts):
    frame = b"".join(line + end for line, end in parts) + b"\n"
    values = []
    for line in frame.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))

    assert data_of(frame) == (b"\n".join(values) if values else None)
