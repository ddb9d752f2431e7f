"""A PROXY header is read whole and strictly, in any split."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.errors import BadRequestHead
from gateway.wire.proxy_header import SIGNATURE, read_proxy


def block(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


TCP4 = block(0x21, 0x11, bytes((1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 187)))
TCP6 = block(0x21, 0x21, b"\x20\x01\x0d\xb8" + b"\0" * 11 + b"\x01" + b"\0" * 20)
WHOLE = {
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\r\n": "1.2.3.4",
    b"PROXY TCP6 2001:DB8::1 ::1 1111 80\r\n": "2001:db8::1",
    b"PROXY UNKNOWN\r\n": "",
    b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n": "",
    TCP4: "1.2.3.4",
    TCP6: "2001:db8::1",
    block(0x21, 0x11, bytes(12) + b"\x04\0\x03abc"): "0.0.0.0",
    block(0x20, 0x00, b""): "",
    block(0x21, 0x31, bytes(216)): "",
}


@pytest.mark.parametrize("header", WHOLE)
def test_a_header_is_read_when_it_is_whole_and_not_before(header: bytes) -> None:
    for end in range(len(header)):
        assert read_proxy(header[:end]) is None
    assert read_proxy(header + b"GET / HTTP/1.1") == (WHOLE[header], len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"PROXY \r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 123456 2\r\n", b"PROXY UNKNOWN " + b"x" * 200,
        SIGNATURE[:-1] + b"x", block(0x11, 0x11, bytes(12)), block(0x22, 0x11, bytes(12)),
        block(0x21, 0x11, bytes(8)), block(0x21, 0x21, bytes(12)), block(0x21, 0x11, bytes(5000)),
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequestHead):
        read_proxy(data)


@given(st.binary(max_size=60), st.sampled_from([b"", b"PROXY TCP4 ", SIGNATURE]))
def test_no_bytes_raise_anything_but_the_declared(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(BadRequestHead):
        read_proxy(start + noise)
