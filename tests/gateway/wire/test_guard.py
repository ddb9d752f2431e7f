"""A head is read one way or not at all."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.errors import (
    BadRequestHead,
    ContractError,
    ExpectationFailed,
    HeadTooLarge,
    UriTooLong,
)
from gateway.settings import WireSettings
from gateway.wire.guard import read_head

SETTINGS = WireSettings()
POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"

MALFORMED = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts, other case": b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "host port of letters": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "length and coding": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "two equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "length list": POST + b"Content-Length: 3, 3\r\n\r\n",
    "signed length": POST + b"Content-Length: +3\r\n\r\n",
    "negative length": POST + b"Content-Length: -3\r\n\r\n",
    "hex length": POST + b"Content-Length: 0x3\r\n\r\n",
    "length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n",
    "fractional length": POST + b"Content-Length: 3.0\r\n\r\n",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "endless length": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "coding with a control": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "coding in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "space before colon": POST + b"Content-Length : 3\r\n\r\n",
    "tab before colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n",
    "space in a name": POST + b"Na me: x\r\n\r\n",
    "empty name": POST + b": x\r\n\r\n",
    "no colon": POST + b"Foo\r\n\r\n",
    "high byte in a name": POST + b"X\x80: y\r\n\r\n",
    "folded by a space": POST + b"X: a\r\n b\r\n\r\n",
    "folded by a tab": POST + b"X: a\r\n\tb\r\n\r\n",
    "first line folded": b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "bare LF": POST + b"X: a\nContent-Length: 3\r\n\r\n",
    "bare CR": POST + b"X: a\rContent-Length: 3\r\n\r\n",
    "CR CR LF": POST + b"X: a\r\r\nY: b\r\n\r\n",
    "NUL in a value": POST + b"X: a\0b\r\n\r\n",
    "NUL in a name": POST + b"X\0: b\r\n\r\n",
    "control in a value": POST + b"X: a\x01b\r\n\r\n",
    "DEL in a value": POST + b"X: a\x7fb\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab for a space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "space after the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot": b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot at the end": b"GET /a/.. HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot": b"GET /a/./b HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped dots": b"GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots after an escaped slash": b"GET /a%2f..%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "two slashes": b"GET //a HTTP/1.1\r\nHost: a\r\n\r\n",
    "two slashes, one escaped": b"GET /a/%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped backslash": b"GET /a%5cb HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped NUL": b"GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "length with a leading zero": POST + b"Content-Length: 03\r\n\r\n",
    "two credentials": POST + b"Authorization: a\r\nAuthorization: a\r\n\r\n",
    "dot dot with a parameter": b"GET /a/..;x/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "escape inside an escape": b"GET /a%252fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "escape that is none": b"GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "escape cut short": b"GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped line end": b"GET /a%0A HTTP/1.1\r\nHost: a\r\n\r\n",
    "high byte in the target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_can_be_read_two_ways_is_refused(name: str) -> None:
    with pytest.raises(BadRequestHead):
        read_head(MALFORMED[name], SETTINGS)


def test_a_plain_head_is_read() -> None:
    head = read_head(
        b"POST /v1/x?a=b HTTP/1.1\r\nHost: [::1]:80\r\nX-Empty:\r\nX:  a b \t\r\n"
        b"Content-Length: 12\r\nExpect: 100-Continue\r\n\r\n",
        SETTINGS,
    )
    assert (head.method, head.target, head.length) == ("POST", b"/v1/x?a=b", 12)
    assert head.expects_continue
    assert not head.close
    assert (b"x-empty", b"") in head.headers
    assert (b"x", b"a b") in head.headers


def test_an_offer_of_h2c_is_ignored() -> None:
    head = read_head(
        POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n",
        SETTINGS,
    )
    assert head.length == 2
    assert not head.close


@pytest.mark.parametrize(
    "value", [b"200-ok", b"100-continue, x", b"", b"100-continue\r\nExpect: x"]
)
def test_an_expectation_that_cannot_be_met_says_so(value: bytes) -> None:
    with pytest.raises(ExpectationFailed):
        read_head(POST + b"Expect: " + value + b"\r\n\r\n", SETTINGS)


@pytest.mark.parametrize("target", [b"/a?b=/../%zz", b"/a;b=c", b"/v1/models/m%2Fl", b"/caf%C3%A9"])
def test_a_plain_target_stays_as_it_is(target: bytes) -> None:
    head = read_head(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", SETTINGS)
    assert head.target == target


def test_http10_and_connection_close_end_the_connection() -> None:
    http10 = b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
    assert read_head(http10, SETTINGS).close
    assert read_head(POST + b"Connection: x, Close\r\n\r\n", SETTINGS).close
    assert not read_head(POST + b"Connection: x-close\r\n\r\n", SETTINGS).close


def test_a_chunked_body_has_no_length() -> None:
    assert read_head(POST + b"Transfer-Encoding: Chunked\r\n\r\n", SETTINGS).length is None


def test_sizes_are_bounded() -> None:
    with pytest.raises(UriTooLong):
        read_head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 9000), SETTINGS)
    with pytest.raises(HeadTooLarge):
        read_head(POST + b"X: y\r\n" * 100 + b"\r\n", SETTINGS)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise_anything_but_the_declared(noise: bytes, framed: bool) -> None:
    data = POST + b"X: " + noise + b"\r\n\r\n" if framed else noise + b"\r\n\r\n"
    with contextlib.suppress(ContractError):
        read_head(data, SETTINGS)
