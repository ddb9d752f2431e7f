"""Smuggled and malformed requests behind nginx: no engine sees a second request or another body.

The suite sends the same corpus to the gateway directly (tests/flows/test_malformed.py). Here an nginx
stands in front, keep-alive on both sides, as a proxy that may read a head otherwise than we do. It may
repair a refused request into one plain request; it may answer in its own words; it may pass on what it
takes for a second request of the same client, whole and by itself, which is no smuggling: then the
hidden request has its own head and its own body. Anything else an engine sees is a fault:

    bytes of the hidden request inside another one's body or head, a body that none of ours is,
    more plain requests than the case has, or an answer of one client given to another.

Usage: python -m loadtests.smuggling        Exits 1 at a fault.
"""

import contextlib
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

from loadtests.rig import Nginx, RigError
from tests.support.gateway import document, running
from tests.support.malformed import PLAIN, SMUGGLED, Case, body_of, cases, unsalted
from tests.support.recording import RecordingEngine, recording_engine

MODEL = b"demo-model"
#: The gateway's own question to an engine, asked whenever it likes.
PROBE = b'"messages":[{"role":"user","content":"hi"}]'
SILENCE_S = 1.5
NEXT_CLIENT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %b\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
)


def main() -> int:
    try:
        return prove()
    except RigError as error:
        print(f"smuggling: {error}", file=sys.stderr)
        return 2


def prove() -> int:
    faults: list[str] = []
    passed_on: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        recording_engine() as engine,
        running(
            Path(folder) / "data", access_log="false", wire_connections_per_address_max=4000
        ) as gateway,
    ):
        applied = gateway.apply(document(engine.url, model=MODEL.decode(), upstream=MODEL.decode()))
        key = applied["keys"][0]["secret"].encode()
        port = int(gateway.base_url.split(":")[2].split("/")[0])
        nginx = Nginx(port)
        try:
            corpus = cases(key, MODEL)
            for case in corpus:
                faults += judge(case, nginx.port, engine, key, passed_on)
        finally:
            nginx.close()
    refused = sum(case.status >= 400 for case in corpus)
    print(
        f"{len(corpus)} cases behind nginx, {refused} of them to be refused: {len(faults)} faults"
    )
    if passed_on:
        print(f"nginx took the hidden request for one of its own in: {', '.join(passed_on)}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


def asked(engine: RecordingEngine) -> Counter[bytes]:
    """The bodies of requests that the engine has seen, the gateway's own questions apart."""
    return Counter(unsalted(body) for body in engine.bodies() if PROBE not in body)


def judge(
    case: Case, port: int, engine: RecordingEngine, key: bytes, passed_on: list[str]
) -> list[str]:
    """What one case did that it must not; then the next client must get its own answer."""
    before = asked(engine)
    said = converse(port, case.data)
    seen = asked(engine) - before
    plain, hidden = body_of(MODEL, PLAIN), body_of(MODEL, SMUGGLED)
    faults = []
    strangers = [body for body in seen if body not in (plain, hidden)]
    if strangers:
        faults.append(f"{case.name}: an engine saw {strangers[0][:120]!r}")
    if seen[plain] > max(1, case.forwarded):
        faults.append(f"{case.name}: {seen[plain]} plain requests at the engine")
    if seen[hidden]:
        passed_on.append(case.name)
    if seen[hidden] > (1 if said.count(b"HTTP/1.1 ") > 1 else 0):
        faults.append(f"{case.name}: the hidden request reached the engine unanswered")
    answer = converse(port, NEXT_CLIENT % (key, len(plain), plain))
    if answer.count(b"HTTP/1.1 ") != 1 or b'"content":"yes"' not in answer.replace(b'": ', b'":'):
        faults.append(f"{case.name}: the next client got {answer[:120]!r}")
    streams = [bytes(raw) for raw in engine.received]
    if not all(whole(each, key) for each in streams if SMUGGLED in each):
        faults.append(f"{case.name}: the hidden request is inside another's bytes")
    return faults


def whole(stream: bytes, key: bytes) -> bool:
    """Whether each time the hidden prompt is there, it is in a body of its own."""
    hidden = body_of(MODEL, SMUGGLED)
    return stream.count(SMUGGLED) == stream.count(hidden[1:]) and key not in stream


def converse(port: int, data: bytes) -> bytes:
    """Everything that comes back until the other side closes or is silent."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.settimeout(SILENCE_S)
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while more := sock.recv(65_536):
                said += more
    return said


if __name__ == "__main__":
    sys.exit(main())
