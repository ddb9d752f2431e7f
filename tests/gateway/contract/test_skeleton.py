"""Nesting and shape without a loop over bytes, the same as with one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import skeleton
from gateway.contract.errors import InvalidBody
from gateway.contract.skeleton import Shape, brackets, check_depth, cut_at, outside, value_end

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=12), st.sampled_from(['"', "\\", "[{]}"])
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def drained(steps):
    """A generator's result, and how often it gave way."""
    turns = 0
    try:
        while True:
            next(steps)
            turns += 1
    except StopIteration as stop:
        return stop.value, turns


@pytest.fixture(params=[2, 3, 7, 64, 65_536])
def slices(request, monkeypatch):
    monkeypatch.setattr(skeleton, "SLICE_BYTES", request.param)
    monkeypatch.setattr(skeleton, "FIRST_BYTES", min(request.param, 512))
    monkeypatch.setattr(skeleton, "FINE_BYTES", min(request.param, 1024))
    return request.param


def depth_of(body):
    """The slow way."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in body.decode():
        if in_string:
            in_string = escaped or byte != '"'
            escaped = byte == "\\" and not escaped
        elif byte == '"':
            in_string = True
        elif byte in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in "]}":
            depth -= 1
    return deepest


@given(st.binary(max_size=40), st.integers(2, 9))
def test_slices_join_to_the_whole_and_tear_no_escape(data, size):
    data = data.replace(b"a", b"\\")
    at, pieces = 0, []
    while at < len(data):
        end = cut_at(data, at, size)
        assert end > at
        pieces.append(data[at:end])
        at = end

    assert b"".join(pieces) == data


def test_value_ends_are_found_in_any_slicing(slices):
    @given(values, st.booleans())
    def check(value, escape):
        text = json.dumps(value, ensure_ascii=escape).encode()
        body = b'  {"k": ' + text + b' , "z":"]}"}'
        if text[:1] in b'"[{':
            assert drained(value_end(body, 8))[0] == 8 + len(text)

    check()


def test_depth_is_the_slow_ways_depth_in_any_slicing(slices):
    @given(values, st.integers(0, 70))
    def check(value, deeper):
        text = json.dumps(value)
        body = ("[" * deeper + text + "]" * deeper).encode()
        if depth_of(body) > 64:
            with pytest.raises(InvalidBody):
                drained(check_depth(body))
        else:
            drained(check_depth(body))

    check()


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_sixty_four_levels_pass_and_one_more_does_not(open_, close):
    levels = 64 // open_.count("[") if open_ == "[" else 64 // sum(map(open_.count, "[{"))
    drained(check_depth((open_ * levels + "1" + close * levels).encode()))

    with pytest.raises(InvalidBody):
        drained(check_depth(("[" + open_ * levels + "1" + close * levels + "]").encode()))


def test_depth_counts_levels_not_brackets():
    drained(check_depth(b"[" + b"[[],{}]," * 10_000 + b"[]]"))
    drained(check_depth(b'["' + b"[" * 1000 + b'"]'))


@given(values, st.booleans())
def test_brackets_are_those_outside_strings(value, escape):
    text = json.dumps(value, ensure_ascii=escape).encode()
    bare, in_string = outside(text, False)

    assert not in_string
    assert brackets(text, False)[0] == bare.translate(None, skeleton.NO_BRACKETS)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (b'["a", "b,[", "c\\""]', Shape(b"[]", 2, strings=True)),
        (b"[1, 2,-3]", Shape(b"[]", 2, numbers=True)),
        (b"[[1,2],[3]]", Shape(b"[[][]]", 2, numbers=True)),
        (b"[1.5]", Shape(b"[]", 0, numbers=True, others=1)),
        (b'[{"a":1}]', Shape(b"[{}]", 0, strings=True, numbers=True, others=1)),
        (b"[]", Shape(b"[]")),
    ],
)
def test_shapes_of_lists_in_any_slicing(slices, array, shape):
    assert drained(skeleton.shape_of(array, 100))[0] == shape


def test_large_bodies_give_way_once_a_slice():
    body = b'["' + b"x" * (1 << 20) + b'"]'

    assert drained(check_depth(body))[1] == len(body) // skeleton.SLICE_BYTES + 1


@given(
    st.lists(st.sampled_from(["[", "{"]), max_size=40),
    st.integers(0, 30),
    st.integers(0, 30),
    st.booleans(),
)
def test_what_is_left_open_is_told_in_order(opened, closings, pairs, deep):
    between = b"[" * 40 + b"]" * 40 if deep else b"[]{}"
    marks = b"]" * closings + between * pairs
    for each in opened:
        marks += each.encode() + between * pairs
    assert skeleton.open_after(marks) == (closings, "".join(opened).encode())
