"""How long one large body holds up everybody else: the longest answer of /healthz meanwhile.

A gateway runs alone on its core. One client sends 8 MiB bodies, one after another, hostile and sound;
another asks /healthz on one kept connection as often as it is answered. A round trip beside a body, less
the median one beside none, is the longest time that the loop did not turn, at most. Each body goes three
times and the best counts: what the machine adds is not the gateway's.

Usage: python -m loadtests.stall [--bound-ms 20]
Exits 1 when a body holds the loop longer than the bound.
"""

import argparse
import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import time

from loadtests.rig import PUBLIC_MODEL, Engine, Gateway, RigError
from tests.support.hostile import LARGE

M = 1 << 20
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
TURNS = 3
TEXT = b'{"model":"MODEL","max_tokens":1,"messages":[{"role":"user","content":'
#: Bodies that are right, and go on to an engine.
SOUND = {
    "one long text": TEXT + b'"' + b"words of it " * (8 * M // 12 - 20) + b'"}]}',
    "text of escapes": TEXT + b'"' + b"\\u00e9" * (8 * M // 6 - 40) + b'"}]}',
    "text beyond ASCII": TEXT + b'"' + "é€😀".encode() * (8 * M // 9 - 40) + b'"}]}',
    "a picture": TEXT + b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,'
    + b"QUJD" * (2 * M - 80) + b'"}}]}]}',
    "many messages": b'{"model":"MODEL","max_tokens":1,"messages":['
    + b'{"role":"user","content":"hi"},' * (8 * M // 31 - 10) + b'{"role":"user","content":"x"}]}',
}  # fmt: skip


def bodies() -> dict[str, bytes]:
    named = {f"sound: {name}": body for name, body in SOUND.items()}
    named |= {f"hostile: {name}": body for name, body in LARGE.items()}
    return {name: body.replace(b"MODEL", PUBLIC_MODEL.encode()) for name, body in named.items()}


def send(port: int, key: str, name: str) -> int:
    """The child's whole task: one body, its answer's status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    body = bodies()[name]
    sys.stdin.readline()  # the asker is ready
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    answer.read()
    print(answer.status, flush=True)
    return 0


class Asker:
    """One kept connection; each ``ask`` is a round trip in ms."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> float:
        began = time.perf_counter()
        self._socket.sendall(HEALTH)
        seen = b""
        while not seen.endswith(b'"}'):
            more = self._socket.recv(4096)
            if not more:
                raise RigError("the gateway closed the asker's connection")
            seen += more
        return 1000 * (time.perf_counter() - began)


def longest_ms(asker: Asker, gateway: Gateway, name: str) -> tuple[float, int]:
    """The longest round trip while one body is sent and answered; the answer's status."""
    command = [
        sys.executable,
        "-m",
        "loadtests.stall",
        "--send",
        name,
        str(gateway.port),
        gateway.key,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        time.sleep(0.5)  # it has read its modules and made its body
        child.stdin.write(b"\n")
        longest, status = 0.0, b""
        until = time.monotonic() + 60
        while not status and time.monotonic() < until:
            longest = max(longest, asker.ask())
            status = child.stdout.read() or b""
        return longest, int(status)


def measure(bound_ms: float) -> int:
    with contextlib.ExitStack() as stack:
        engine = Engine()
        stack.callback(engine.close)
        gateway = Gateway(engine.url)
        stack.callback(gateway.close)
        time.sleep(2)
        asker = Asker(gateway.port)
        alone = [asker.ask() for _ in range(2000)]
        usual = statistics.median(alone)
        print(f"beside none: median {usual:.2f} ms, longest {max(alone):.2f} ms\n")
        print("| 8 MiB body | answer | loop held at most, ms |\n|---|---|---|")
        worst = 0.0
        for name in bodies():
            seen = [longest_ms(asker, gateway, name) for _ in range(TURNS)]
            held = max(0.0, min(each for each, _ in seen) - usual)
            worst = max(worst, held)
            print(f"| {name} | {seen[0][1]} | {held:.1f} |", flush=True)
        print(f"\nlongest {worst:.1f} ms, bound {bound_ms:g} ms")
        return int(worst > bound_ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bound-ms", type=float, default=20.0)
    parser.add_argument("--send", nargs=3, metavar=("NAME", "PORT", "KEY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.send:
            name, port, key = arguments.send
            return send(int(port), key, name)
        return measure(arguments.bound_ms)
    except RigError as error:
        print(f"stall: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
