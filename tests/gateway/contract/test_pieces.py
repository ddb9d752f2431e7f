"""Judged piece by piece, a body gets the verdict that one decode of the whole would give."""

import json
import time
from random import Random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.contract import pieces, skeleton
from gateway.contract.errors import InvalidBody
from gateway.contract.pieces import Broken, check_syntax

WHOLE = msgspec.json.Decoder(msgspec.Raw)
TOKENS = (
    *(bytes([byte]) for byte in b'[]{},:" \n\\1'),
    b'"a"', b'"a":', b"-0.5e3", b"true", b"null", b'"\\""', b'"\\\\"', b'"\\u00e9"', b'"\\ud83d\\ude00"',
    b'"\\ud83d"', b"[]", b"{}", b'"k":[', b"],", b"},", b"NaN", b"01", b"[,", b",]", b"{,",
)  # fmt: skip
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=40)
    | st.sampled_from(["[{,]}", "\\", '"'])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip


def whole(body: bytes) -> bool:
    try:
        WHOLE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def in_pieces(body: bytes) -> bool | None:
    """None: refused before, for its depth."""
    try:
        for _ in skeleton.check_depth(body):
            pass
        for _ in check_syntax(body):
            pass
    except Broken as broken:
        return not 0 <= broken.at <= len(body) + 1
    except InvalidBody:
        return None
    return True


@pytest.fixture(params=[12, 13, 24, 100], autouse=True)
def slices(request, monkeypatch):
    for module in (skeleton, pieces):
        monkeypatch.setattr(module, "SLICE_BYTES", request.param)
    monkeypatch.setattr(skeleton, "FIRST_BYTES", 12)
    monkeypatch.setattr(skeleton, "FINE_BYTES", 12)


def text_only(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(values, st.booleans(), st.booleans())
def test_what_is_json_passes(value, ascii_only, spaced):
    separators = (" , ", "\n:\t") if spaced else (",", ":")
    body = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()

    assert in_pieces(body) is (text_only(body) and whole(body))


@given(
    values,
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(TOKENS), st.integers(0, 3)), max_size=3
    ),
)
@example([1, 2], [(2, b",", 0)])
@example([[], []], [(1, b",", 0)])
@example({"a": 1, "b": 2}, [(7, b",", 0)])
def test_any_damage_is_judged_alike(value, damage):
    body = json.dumps(value).encode()
    for at, inserted, removed in damage:
        body = body[:at] + inserted + body[at + removed :]
    judged = in_pieces(body)

    assert judged is None or judged == whole(body)


@given(st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join))
def test_any_tokens_are_judged_alike(body):
    judged = in_pieces(body)

    assert judged is None or judged == whole(body)


def test_a_comma_at_every_cut_is_seen_from_both_sides():
    """A trailing, leading or double comma, wherever the slices end."""
    for pad in range(30):
        for wrong in (
            b"[1,]",
            b"[,1]",
            b"[1,,2]",
            b'{"a":1,}',
            b'{,"a":1}',
            b"[1],[2]",
            b"[1],2",
            b",",
            b"1,",
        ):
            body = b"[" + b"1," * pad + wrong + b"]" if wrong[:1] in b"[{" else wrong
            assert in_pieces(b" " * pad + body) is whole(body)


def test_ten_times_the_bytes_cost_about_ten_times_the_time(monkeypatch):
    for module in (skeleton, pieces):
        monkeypatch.setattr(module, "SLICE_BYTES", 4096)
    chance = Random(1)

    def cost_s(size):
        tokens = (b"[[]],", b'"\\\\\\"",', b'{"k":[1,{}]},', b"-1.5e3,", b'"' + b"x" * 5000 + b'",')
        body = b"[" + b"".join(chance.choice(tokens) for _ in range(size)) + b"0]"
        began = time.thread_time()
        assert in_pieces(body)
        return (time.thread_time() - began) / len(body)

    assert min(cost_s(5000) for _ in range(3)) < 4 * min(cost_s(500) for _ in range(3))
