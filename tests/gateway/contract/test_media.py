"""What is encoded in a body is left out of its text, in any slice."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import media

ONE = b"data:image/png;base64," + b"QUJD" * 100


def text_bytes(body: bytes) -> int:
    steps = media.text_bytes(body)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@pytest.fixture(params=[1, 7, 300, 65_536], autouse=True)
def slices(request, monkeypatch):
    monkeypatch.setattr(media, "SLICE_BYTES", request.param)


def test_each_piece_counts_as_some_text():
    assert text_bytes(b'["' + ONE + b'","' + ONE + b'"]') == 2 * (14 + media.MEDIA_BYTES) + 7


def test_short_ones_are_text():
    for body in (b"", b"x", b";base64,", b";base64," + b"A" * 255 + b'"' * 300):
        assert text_bytes(body) == len(body)


@given(
    st.lists(st.sampled_from([ONE, b'","', b";base64,", b"A" * 256, b"x" * 50, b'"']), max_size=8)
)
def test_slices_change_nothing(parts):
    body = b"".join(parts)
    found = re.findall(rb";base64,[A-Za-z0-9+/=\\]{256,}+", body)
    assert text_bytes(body) == len(body) - sum(map(len, found)) + media.MEDIA_BYTES * len(found)
