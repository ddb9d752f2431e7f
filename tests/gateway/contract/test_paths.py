"""A byte has the path of the value it lies in; what stands behind it does not matter."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.paths import PATH_CHARS_MAX, STEPS_MAX, path_at


def path_of(body: bytes, mark: bytes = b"#") -> str | None:
    steps = path_at(body, body.index(mark))
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"#", None),
        (b'{"a":#}', "a"),
        (b'{ "a" : { "b" : [ 1 , [ #', "a.b[1][0]"),
        (b'{"a":1,"b":"x#"}', "b"),
        (b'{"a":[{"b":1},{"c":[],"d":#', "a[1].d"),
        (b'{"a":"[{\\"#"}', "a"),
        (b'{"a b":#', '["a b"]'),
        (b'{"\\u0061":#', "a"),
        (b'{"a":1 #}', None),
        (b'{"a":[1,2 #]}', "a"),
        (b'{#"a":1}', None),
        (b"[1,#]", "[1]"),
    ],
)
def test_the_path_is_that_of_the_value(body, path):
    assert path_of(body) == path


def test_far_and_deep_paths_end_early():
    assert path_of(b'{"a":[' + b"1," * (2 * STEPS_MAX) + b"#]}") == "a"
    deep = path_of(b'{"key":' * 500 + b"#")
    assert deep is not None
    assert deep.startswith("key.key.")
    assert len(deep) <= PATH_CHARS_MAX


@given(st.binary(max_size=80), st.integers(0, 80))
def test_any_bytes_have_a_path_or_none(body, place):
    for _ in path_at(body, place):
        pass


@given(
    st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 9)), max_size=3),
    st.binary(max_size=5),
)
def test_what_stands_behind_does_not_matter(fields, noise):
    body = json.dumps({**fields, "z": {"y": ["MARK"]}}).encode()
    body = body[: body.index(b"MARK") + 4] + noise
    assert path_of(body, b"MARK") == "z.y[0]"
