"""300 slow connections at once: each is closed on time, and nobody else feels them.

Clients that drip a head, drip a body, say nothing, stay after their answer, or do not read a stream
(their streams have filled every buffer before anything is measured). Whoever is closed is replaced, so
that there are always as many; those that do not read live through the whole run. Beside them a healthy client asks at a
steady rate, before, meanwhile and afterwards; its p99 must stay within 1.5 times of what it was.
Deadlines are shortened (--defaults: as they ship, a run of some four minutes).

Usage: python -m loadtests.slow [--connections 300] [--seconds 16] [--defaults]
Exits 1 when a slow one lives too long or not long enough, or the healthy client waits too long.
"""

import argparse
import contextlib
import json
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loadtests.rig import (
    MODEL,
    PUBLIC_MODEL,
    REST_CORE,
    Engine,
    Gateway,
    RigError,
    compiled,
    pinned,
)

SHORT = {"head_s": 4.0, "body_s": 8.0, "idle_s": 6.0, "stall_s": 25.0}
DEFAULTS = {"head_s": 10.0, "body_s": 30.0, "idle_s": 75.0, "stall_s": 30.0}
#: A rate below the least is looked at this often (gateway.wire.connection).
RATE_CHECK_S = 5.0
#: A tick, and a moment to read the refusal.
SLACK_S = 2.5
DRIP_S = 0.5
#: Events of this size fill the kernel's buffers (some 3 MB) of a reader that does not read within
#: seconds, and yet are few: what a stream costs is not what is measured here.
PAD_BYTES, PAD_INTERVAL_US = 120_000, 300_000
FILLING_S = 11.0
RATE_PER_S = 300
P99_RATIO_MAX = 1.5
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %b\r\n"
KINDS = ("head drip", "body drip", "silent", "stays", "does not read")


class Slow:
    """One slow connection: what it sends at once, what it drips, and how long it may live."""

    def __init__(self, kind: str, port: int, key: bytes, limits: dict[str, float]) -> None:
        self.kind = kind
        self.drip = b""
        body = b'{"model":"%b","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}'
        body %= PUBLIC_MODEL.encode()
        begins = b""
        if kind == "head drip":
            self.drip = HEAD % key + b"X-Drip: " + b"a" * 5000
            self.wanted_s = limits["head_s"]
        elif kind == "body drip":
            begins = HEAD % key + b"Content-Length: 5000\r\n\r\n"
            self.drip = b'{"model":' + b" " * 4000
            self.wanted_s = min(RATE_CHECK_S, limits["body_s"])
        elif kind == "silent":
            self.wanted_s = limits["idle_s"]
        elif kind == "stays":
            begins = HEAD % key + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            self.wanted_s = limits["idle_s"]
        else:
            body = body.replace(b'"max_tokens":8', b'"max_tokens":8000,"stream":true')
            begins = HEAD % key + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            self.wanted_s = limits["stall_s"] + FILLING_S
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(("127.0.0.1", port))
        self.sock.settimeout(0)
        self.began_s = time.monotonic()
        self._send(begins)

    def step(self) -> None:
        """Another byte, where it drips; an answer is read by those that read."""
        self._send(self.drip[:1])
        self.drip = self.drip[1:]
        if self.kind != "does not read":
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.sock.recv(65_536)

    def _send(self, data: bytes) -> None:
        try:
            if data:
                self.sock.send(data)
        except (BlockingIOError, ConnectionError):
            pass


class Crowd:
    """All slow connections, kept at their number. ``lives``: kind -> seconds each was open."""

    def __init__(self, count: int, port: int, key: bytes, limits: dict[str, float]) -> None:
        self._make = lambda number: Slow(KINDS[number % len(KINDS)], port, key, limits)
        self._count = count
        self._open: dict[int, Slow] = {}
        self._poll = select.poll()
        self.lives: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.wanted_s: dict[str, float] = {}

    def run(self, until_s: float, *, replace: bool) -> None:
        """``replace``: whoever is closed is followed by another of its kind."""
        dripped_s = 0.0
        for number in range(self._count - len(self._open) if replace and not self.wanted_s else 0):
            self._add(number)
        while time.monotonic() < until_s and self._open:
            for fd, _ in self._poll.poll(100):
                slow = self._open.pop(fd)
                self._poll.unregister(fd)
                slow.sock.close()
                self.lives[slow.kind].append(time.monotonic() - slow.began_s)
                if replace and slow.kind != "does not read":
                    self._add(KINDS.index(slow.kind))
            if time.monotonic() - dripped_s >= DRIP_S:
                dripped_s = time.monotonic()
                for slow in self._open.values():
                    slow.step()

    @property
    def left(self) -> list[str]:
        return [slow.kind for slow in self._open.values()]

    def _add(self, number: int) -> None:
        slow = self._make(number)
        self.wanted_s[slow.kind] = slow.wanted_s
        self._open[slow.sock.fileno()] = slow
        self._poll.register(slow.sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=16.0)
    parser.add_argument("--defaults", action="store_true")
    arguments = parser.parse_args()
    limits = DEFAULTS if arguments.defaults else SHORT
    settings = {f"wire_{name}": value for name, value in limits.items()}
    engine = Engine()
    gateway: Gateway | None = None
    try:
        gateway = Gateway(engine.url, **settings)
        time.sleep(2.0)
        engine.answers(chunks=8000, interval_us=PAD_INTERVAL_US, pad=PAD_BYTES)
        return prove(gateway, arguments, limits)
    except RigError as error:
        print(f"slow: {error}", file=sys.stderr)
        return 2
    finally:
        if gateway is not None:
            gateway.close()
        engine.close()


def prove(gateway: Gateway, arguments: argparse.Namespace, limits: dict[str, float]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body.json"
        body.write_text(json.dumps(
            {"model": PUBLIC_MODEL, "max_tokens": 8,
             "messages": [{"role": "user", "content": "How are you? " * 60}]},
            separators=(",", ":"),
        ))  # fmt: skip
        seconds = arguments.seconds
        healthy(gateway, body, 3).wait()
        before = report(healthy(gateway, body, seconds / 2))
        crowd = Crowd(arguments.connections, gateway.port, gateway.key.encode(), limits)
        crowd.run(time.monotonic() + FILLING_S, replace=True)
        beside = healthy(gateway, body, seconds)
        crowd.run(time.monotonic() + seconds, replace=True)
        meanwhile = report(beside)
        crowd.run(time.monotonic() + max(limits.values()) + FILLING_S + SLACK_S, replace=False)
        after = report(healthy(gateway, body, seconds / 2))
    return judge(crowd, before, meanwhile, after, arguments.connections)


def healthy(gateway: Gateway, body: Path, seconds: float) -> "subprocess.Popen[str]":
    """A client at a steady rate, whatever the answers do."""
    command = [compiled("load"), "-p", str(gateway.port), "-b", str(body), "-M", PUBLIC_MODEL, "-k",
               gateway.key, "-c", "16", "-r", str(RATE_PER_S), "-d", str(seconds)]  # fmt: skip
    return subprocess.Popen(pinned(REST_CORE, *command), stdout=subprocess.PIPE, text=True)


def report(client: "subprocess.Popen[str]") -> dict[str, float]:
    out, _ = client.communicate(timeout=300)
    return json.loads(out)


def judge(
    crowd: Crowd, before: dict, meanwhile: dict, after: dict, connections: int
) -> int:  # fmt: skip
    faults = []
    print(f"{connections} slow connections to {MODEL}, {len(crowd.left)} left at the end")
    for kind, lives in crowd.lives.items():
        wanted_s = crowd.wanted_s[kind]
        if not lives:
            faults.append(f"no connection of kind {kind!r} was closed")
            continue
        print(f"  {kind:14s} {len(lives):4d} closed after {min(lives):.1f}-{max(lives):.1f} s "
              f"(to be closed after {wanted_s:.0f} s)")  # fmt: skip
        if max(lives) > wanted_s + SLACK_S:
            faults.append(f"{kind!r} lived {max(lives):.1f} s, {wanted_s:.0f} s allowed")
        if min(lives) < wanted_s - FILLING_S * (kind == "does not read") - 0.5:
            faults.append(f"{kind!r} was closed after {min(lives):.1f} s, before its time")
    if crowd.left:
        faults.append(f"still open at the end: {sorted(set(crowd.left))}")
    alone = statistics.mean((before["latency_p99_us"], after["latency_p99_us"]))
    ratio = meanwhile["latency_p99_us"] / alone
    print(f"  healthy at {RATE_PER_S}/s: p99 {before['latency_p99_us']:.0f} us before, "
          f"{meanwhile['latency_p99_us']:.0f} us beside them, {after['latency_p99_us']:.0f} us after: "
          f"{ratio:.2f}x; p50 {before['latency_p50_us']:.0f}, {meanwhile['latency_p50_us']:.0f}, "
          f"{after['latency_p50_us']:.0f} us")  # fmt: skip
    if ratio > P99_RATIO_MAX:
        faults.append(f"healthy p99 grew {ratio:.2f} times, {P99_RATIO_MAX} allowed")
    wrong = sum(each["wrong"] for each in (before, meanwhile, after))
    if wrong:
        faults.append(f"{wrong:.0f} healthy answers were wrong: {meanwhile['first_wrong']}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
