"""Smuggled and malformed requests against a whole gateway: no engine sees what was not meant."""

import socket

import pytest

from tests.support.gateway import document, running
from tests.support.malformed import PLAIN, SMUGGLED, Case, body_of, cases, unsalted
from tests.support.recording import recording_engine

KEY = b"tf_live_0123456789_" + b"x" * 49
NAMES = [case.name for case in cases(KEY, b"demo-model")]
AGAIN = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed")
    with (
        recording_engine() as engine,
        running(folder / "data", access_log="false", wire_connections_per_address_max=4000) as gateway,
    ):  # fmt: skip
        applied = gateway.apply(document(engine.url, model="demo-model", upstream="demo-model"))
        key = applied["keys"][0]["secret"].encode()
        by_name = {case.name: case for case in cases(key, b"demo-model")}
        address = ("127.0.0.1", int(gateway.base_url.split(":")[2].split("/")[0]))
        yield address, engine, by_name


def converse(address, case: Case) -> bytes:
    """Everything that comes back; a kept connection is asked for its health at the end."""
    with socket.create_connection(address, timeout=10) as sock:
        said = b""
        sock.sendall(case.data)
        if case.kept:
            while said.count(b"HTTP/1.1 ") < case.answers:
                said += sock.recv(65_536)
            sock.sendall(AGAIN)
        while more := sock.recv(65_536):
            said += more
    return said


def plain_requests(engine) -> int:
    """How many engine requests carry our prompt; each must be the body of one of ours."""
    asked = [unsalted(body) for body in engine.bodies() if PLAIN in body]
    assert set(asked) <= {body_of(b"demo-model", PLAIN)}
    return len(asked)


@pytest.mark.parametrize("name", NAMES)
def test_no_engine_sees_a_second_request_or_another_body(pair, name):
    address, engine, by_name = pair
    case = by_name[name]
    hidden, before = engine.all().count(SMUGGLED), plain_requests(engine)

    said = converse(address, case)

    assert said.startswith(b"HTTP/1.1 %d " % case.status)
    assert said.count(b"HTTP/1.1 ") == case.answers + case.kept
    assert engine.all().count(SMUGGLED) == hidden
    assert plain_requests(engine) == before + case.forwarded
    first = said.partition(b"\r\n\r\n")[0].lower()
    assert (b"connection: close" in first) == (not case.kept)
    if case.status >= 400:
        assert b'{"error":{"message":' in said
