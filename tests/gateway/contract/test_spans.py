"""Every member of an object, where it stands in the bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import skeleton, spans
from gateway.contract.errors import InvalidBody
from gateway.contract.spans import GUARDED, Scan, members_of

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12), st.sampled_from(['"', "\\", "[{]}", ',"a":1']),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
keys = st.one_of(st.text(max_size=8), st.sampled_from(["temperature", "x", 'a"b', "é", "tools"]))
spaces = st.sampled_from(["", " ", "\n", "\t ", "\r\n  "])


@st.composite
def objects(draw):
    """Pairs (unknown keys may come twice) and their text in any spacing and escaping."""
    pairs = draw(st.lists(st.tuples(keys, values), max_size=6))
    pairs = [(key, value) for key, value in pairs if key not in GUARDED]
    space = lambda: draw(spaces)  # noqa: E731 -- read in five places below
    ascii_only = draw(st.booleans())
    written = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{space()}:{space()}{json.dumps(value)}"
        for key, value in pairs
    ]
    text = space() + "{" + space()
    text += f"{space()},{space()}".join(written) + space() + "}" + space()
    return pairs, text.encode()


@pytest.fixture(params=[2, 5, 64, 65_536])
def slices(request, monkeypatch):
    for module in (skeleton, spans):
        monkeypatch.setattr(module, "SLICE_BYTES", request.param)
    monkeypatch.setattr(skeleton, "FIRST_BYTES", min(request.param, 512))
    monkeypatch.setattr(skeleton, "FINE_BYTES", min(request.param, 1024))


def test_members_are_the_pairs_in_order_with_their_bytes(slices):
    @given(objects())
    def check(made):
        pairs, body = made
        scan = Scan(body)
        scan.finish()

        assert [member.key for member in scan.members] == [key for key, _ in pairs]
        for member, (key, value) in zip(scan.members, pairs, strict=True):
            assert json.loads(body[member.value : member.end]) == value
            text = body[member.start : member.end]
            assert json.loads(b"{" + text + b"}") == {key: value}

    check()


def test_keys_are_compared_decoded():
    with pytest.raises(InvalidBody) as refused:
        Scan(b'{"priority":1,"\\u0070riority":2}').finish()

    assert refused.value.param == "priority"


@pytest.mark.parametrize("key", sorted(GUARDED))
def test_guarded_key_twice_is_refused(key):
    body = f'{{"{key}":1,"x":2,"{key}":12}}'.encode()

    with pytest.raises(InvalidBody) as refused:
        Scan(body).finish()
    assert refused.value.param == key


@pytest.mark.parametrize(
    ("one", "two"), [("1", "12"), ("12", "1"), ("[1]", "[[1]]"), ('"a"', '"ab"')]
)
@pytest.mark.parametrize("key", ["x", "tools"])
def test_other_keys_may_come_twice_and_keep_their_spans(key, one, two):
    body = f'{{"{key}":{one},"{key}":{two} , "y":0}}'.encode()
    scan = Scan(body)
    scan.finish()

    written = [body[member.value : member.end].decode() for member in scan.members]
    assert written == [one, two, "0"]


def test_inner_objects_name_their_path():
    with pytest.raises(InvalidBody) as refused:
        members_of(b'{"include_usage":true,"include_usage":false}', {"include_usage"}, "options.")

    assert refused.value.param == "options.include_usage"


def test_large_scan_gives_way_and_a_finished_one_costs_nothing():
    body = b'{"model":"m","messages":["' + b"x" * 300_000 + b'"],"z":{"a":[1,"]"]}}'
    scan = Scan(body)

    assert sum(1 for _ in scan) >= 8
    assert [body[m.value : m.end] for m in scan.members][2] == b'{"a":[1,"]"]}'
    assert sum(1 for _ in scan) == 0


def test_values_stand_as_written():
    scan = Scan(b'{ "model" : "m" , "n": null }')
    scan.finish()

    assert scan.value("model") == b'"m"'
    assert scan.value("n") == b"null"
    assert scan.value("user") is None
