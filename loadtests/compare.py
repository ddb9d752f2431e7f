"""What the gateway costs beside nginx: both on one core, in turn, every answer checked.

Starts the C engine, nginx as a plain reverse proxy, the gateway with everything on (keys, limits in
three scopes, board, journal, access log), and the gateway again with a Valkey as its store. In each
round every case runs on all of them, one after another, so that a drifting machine drifts for all.
Target processes run on core 1; engine, load generator, control process and Valkey on core 0.

    python -m loadtests.compare                                      a round of everything
    python -m loadtests.compare --rounds 3 --json out.json           three; a file is continued
    python -m loadtests.compare --show out.json                      the table of a file
    python -m loadtests.compare --profile flame.svg --only unary_1k  where the gateway's time goes

CPU is utime + stime of the target: nginx's worker and master, the gateway's data process with its
journal thread. What the control process spends meanwhile is shown beside it. A chunk's cost holds
its share of its request's. Medians, with the least and the most of the rounds in brackets.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from loadtests import profiler
from loadtests.rig import (
    Engine,
    Gateway,
    Nginx,
    RigError,
    Valkey,
    compiled,
    cpu_s,
    load,
    pinned,
    pss_kb,
)

CHUNKS = 200
IDLE_STREAMS = 1000
#: Backlog of the control process (shipping records) may last so long before the next case.
QUIET_S = 5.0
Result = dict[str, object]


class Case:
    """One load. ``streams``: content events in each answer, 0 = whole answers."""

    def __init__(
        self, name: str, *options: str, edited: bool = True, body_bytes: int = 1000,
        streams: int = 0, interval_us: int = 0, redis: bool = False, same_as: str = "",
    ) -> None:  # fmt: skip
        self.name = name
        self.options = options
        self.edited = edited
        self.body_bytes = body_bytes
        self.streams = streams
        self.interval_us = interval_us
        self.redis = redis
        self.same_as = same_as  # nginx does the same work there: it is measured once


CASES = [
    Case("unary_1k", "-c", "32", "-d", "2.5", redis=True),
    Case("unary_32k", "-c", "32", "-d", "2", body_bytes=32_000, redis=True),
    Case("chunk_unpaced_edited", "-c", "64", "-n", "320", streams=CHUNKS),
    Case("chunk_unpaced", "-c", "64", "-n", "320", streams=CHUNKS, edited=False,
         same_as="chunk_unpaced_edited"),
    Case("chunk_1000x50_edited", "-c", "1000", "-n", "1000", "-R", "1000", streams=CHUNKS,
         interval_us=20_000, redis=True),
    Case("chunk_1000x50", "-c", "1000", "-n", "1000", "-R", "1000", streams=CHUNKS,
         interval_us=20_000, edited=False, same_as="chunk_1000x50_edited"),
    Case("chunk_500x50_edited", "-c", "500", "-n", "500", "-R", "800", streams=CHUNKS,
         interval_us=20_000),
    Case("latency_1", "-c", "1", "-n", "3000", "-w", "200", redis=True),
    Case("latency_16", "-c", "16", "-r", "2000", "-d", "2", "-w", "100", redis=True),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="cases, comma-separated")
    parser.add_argument("--targets", default="nginx,gateway,gateway+redis")
    parser.add_argument("--json", type=Path, help="write here; an existing file is continued")
    parser.add_argument("--show", type=Path, help="print the table of a file and leave")
    parser.add_argument("--profile", type=Path, help="write a flame graph of the gateway (SVG)")
    parser.add_argument("--profile-s", type=float, default=8.0)
    arguments = parser.parse_args()
    try:
        if arguments.show:
            print(table(json.loads(arguments.show.read_text())))
            return 0
        return measure(arguments)
    except RigError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def measure(arguments: argparse.Namespace) -> int:
    only = [name for name in arguments.only.split(",") if name]
    known = [case.name for case in CASES] + ["idle"]
    if set(only) - set(known):
        raise RigError(f"--only knows {', '.join(known)}")
    done: Result = {"commit": commit(), "machine": machine(), "rounds": []}
    if arguments.json and arguments.json.exists():
        done = json.loads(arguments.json.read_text())
        if done["commit"] != commit():
            raise RigError(f"{arguments.json} was measured at {done['commit']}, not {commit()}")
    with Rig(arguments.targets.split(",")) as rig:
        if arguments.profile:
            case = next(each for each in CASES if each.name == (only or ["unary_1k"])[0])
            return rig.profile(case, arguments.profile, arguments.profile_s)
        for _ in range(arguments.rounds):
            one: Result = {}
            if not only or "idle" in only:
                one["idle"] = rig.idle()
            for case in CASES:
                if not only or case.name in only:
                    one[case.name] = rig.run(case)
            done["rounds"].append(one)
            if arguments.json:
                arguments.json.write_text(json.dumps(done, indent=1))
    print(table(done))
    faults = [
        f"{case} on {target}: {seen['wrong']} wrong, {seen['first_wrong']}"
        for one in done["rounds"]
        for case, by_target in one.items()
        for target, seen in by_target.items()
        if seen.get("wrong")
    ]
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


class Rig:
    """Engine, targets and bodies, started together and stopped together."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.folder = Path(tempfile.mkdtemp(prefix="tf-compare-"))
        self.parts: list[Engine | Valkey | Nginx | Gateway] = []

    def __enter__(self) -> Self:
        try:
            self.engine = Engine()
            self.parts.append(self.engine)
            self.targets: list[Nginx | Gateway] = []
            for name in self.names:
                self.targets.append(self._target(name))
                self.parts.append(self.targets[-1])
            time.sleep(2.5)  # the probes have asked, their answers have come
            self._warm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _target(self, name: str) -> Nginx | Gateway:
        if name == "nginx":
            return Nginx(self.engine.port)
        if name == "gateway":
            return Gateway(self.engine.url)
        if name == "gateway+redis":
            valkey = Valkey()
            self.parts.append(valkey)
            return Gateway(self.engine.url, name=name, redis_url=valkey.url)
        raise RigError(f"no target is named {name!r}")

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts):
            part.close()

    def _warm(self) -> None:
        warm = (
            Case("warm", "-c", "16", "-n", "2000"),
            Case("warm32", "-c", "16", "-n", "200", body_bytes=32_000),
            Case("warms", "-c", "32", "-n", "64", streams=50),
        )
        for target in self.targets:
            for case in warm:
                self.engine.answers(chunks=case.streams or 16)
                seen = load(target, self.body(case, target), *self.options(case, target))
                if seen["wrong"]:
                    raise RigError(f"{target.name}: {seen['first_wrong']}")

    def body(self, case: Case, target: Nginx | Gateway) -> Path:
        """A request of about ``body_bytes``; what is read of it stands before its text."""
        document: dict[str, object] = {"model": target.model(edited=case.edited)}
        document["max_tokens"] = CHUNKS * 8
        if case.streams:
            document["stream"] = True
            if target.asks_usage(edited=case.edited):
                document["stream_options"] = {
                    "include_usage": True, "continuous_usage_stats": True,
                }  # fmt: skip
        words = "The quick brown fox jumps over the lazy dog. " * (case.body_bytes // 45 + 1)
        document["temperature"] = 0.7
        document["messages"] = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": words},
        ]
        text = json.dumps(document, separators=(",", ":"))
        over = len(text) - case.body_bytes
        if over > 0:
            document["messages"][1]["content"] = words[:-over]  # type: ignore[index]
        path = self.folder / f"{case.name}-{target.name}.json"
        path.write_text(json.dumps(document, separators=(",", ":")))
        return path

    def options(self, case: Case, target: Nginx | Gateway) -> list[str]:
        """The load generator's options, the model whose name must come back first."""
        model = target.model(edited=case.edited)
        if not case.streams:
            return [model, *case.options]
        usage = "all" if target.asks_usage(edited=case.edited) else "none"
        return [model, *case.options, "-s", str(case.streams), "-u", usage]

    def run(self, case: Case) -> Result:
        """One case on every target in turn."""
        seen: Result = {}
        for target in self.targets:
            if target.name == "gateway+redis" and not case.redis:
                continue
            if target.name == "nginx" and case.same_as:
                continue
            seen[target.name] = self.run_on(case, target)
        return seen

    def run_on(self, case: Case, target: Nginx | Gateway) -> Result:
        self.engine.answers(chunks=case.streams or 64, interval_us=case.interval_us)
        body = self.body(case, target)
        before, control, began = cpu_s(target.pid), target.control_cpu_s(), time.monotonic()
        seen = load(target, body, *self.options(case, target))
        elapsed_s = time.monotonic() - began
        used_s = cpu_s(target.pid) - before
        units = seen["content_events"] if case.streams else seen["right"]
        seen["cpu_us"] = 1e6 * used_s / max(1, units)  # type: ignore[operator,type-var]
        seen["utilisation"] = used_s / elapsed_s
        self._settle(target)
        seen["control_cpu_us"] = 1e6 * (target.control_cpu_s() - control) / max(1, units)  # type: ignore[operator,type-var]
        print(f"{case.name:22s} {target.name:14s} {json.dumps(seen)}", file=sys.stderr, flush=True)
        return seen

    def _settle(self, target: Nginx | Gateway) -> None:
        """Until the control process has shipped what the case left."""
        until = time.monotonic() + QUIET_S
        while isinstance(target, Gateway) and time.monotonic() < until:
            before = target.control_cpu_s()
            time.sleep(0.3)
            if target.control_cpu_s() - before < 0.06:
                return

    def idle(self) -> Result:
        """Memory of streams that have begun and are silent."""
        seen: Result = {}
        for target in self.targets:
            if target.name == "gateway+redis":
                continue
            self.engine.answers(chunks=CHUNKS, interval_us=60_000_000)
            case = Case("idle", streams=CHUNKS)
            model, *options = self.options(case, target)
            before = pss_kb(target.pid)
            command = [compiled("load"), "-p", str(target.port), "-M", model, *options, "-c",
                       str(IDLE_STREAMS), "-R", "1000", "-d", "20", "-b",
                       str(self.body(case, target))]  # fmt: skip
            command += ["-k", target.key] if target.key else []
            client = subprocess.Popen(pinned(0, *command), stdout=subprocess.DEVNULL)
            time.sleep(2.5)
            open_streams = self.engine.stat()["streams_open"]
            after = pss_kb(target.pid)
            client.kill()
            client.wait()
            time.sleep(0.5)
            seen[target.name] = {
                "kb_per_stream": (after - before) / IDLE_STREAMS, "base_kb": before,
                "wrong": 0 if open_streams == IDLE_STREAMS else IDLE_STREAMS - open_streams,
                "first_wrong": f"{open_streams} streams were open",
            }  # fmt: skip
        return seen

    def profile(self, case: Case, path: Path, seconds: float) -> int:
        """A flame graph of the gateway's data process under one case, run again and again."""
        target = next(each for each in self.targets if isinstance(each, Gateway))
        self.engine.answers(chunks=case.streams or 64, interval_us=case.interval_us)
        model, *options = self.options(case, target)
        options = [each for at, each in enumerate(options)
                   if "-n" not in (each, options[at - 1]) and "-d" not in (each, options[at - 1])]  # fmt: skip
        command = [compiled("load"), "-p", str(target.port), "-M", model, *options, "-d",
                   str(seconds + 3), "-b", str(self.body(case, target)), "-k", target.key]  # fmt: skip
        client = subprocess.Popen(pinned(0, *command), stdout=subprocess.DEVNULL)
        time.sleep(1.5 if case.streams else 0.5)
        try:
            print(profiler.record(target.pid, seconds, path))
        finally:
            client.kill()
            client.wait()
        return 0


# -- saying it ---------------------------------------------------------------------------------


def numbers(done: Result, case: str, target: str, field: str) -> list[float]:
    return [one[case][target][field] for one in done["rounds"]
            if case in one and target in one[case]]  # type: ignore[union-attr,index]  # fmt: skip


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return "-"
    return (f"{statistics.median(values):.{digits}f} "
            f"({min(values):.{digits}f}-{max(values):.{digits}f})")  # fmt: skip


def ratio(values: list[float], reference: list[float]) -> str:
    if not values or not reference:
        return "-"
    return f"{statistics.median(values) / statistics.median(reference):.2f}x"


def table(done: Result) -> str:
    """Markdown: cost, ratio to nginx, and the delays."""
    names = ("nginx", "gateway", "gateway+redis")
    lines = [
        f"Commit {done['commit']}; {done['machine']}; {len(done['rounds'])} rounds.",
        "",
        "| CPU, us | nginx | gateway | to nginx | control beside it | with Valkey | to nginx |",
        "|---|---|---|---|---|---|---|",
    ]
    of_nginx = {case.name: case.same_as or case.name for case in CASES}
    for case in CASES:
        if case.name.startswith("latency"):
            continue
        by = {name: numbers(done, case.name, name, "cpu_us") for name in names}
        by["nginx"] = numbers(done, of_nginx[case.name], "nginx", "cpu_us")
        if not any(by.values()):
            continue
        lines.append(
            f"| {case.name} | {spread(by['nginx'])} | {spread(by['gateway'])} "
            f"| {ratio(by['gateway'], by['nginx'])} "
            f"| {spread(numbers(done, case.name, 'gateway', 'control_cpu_us'))} "
            f"| {spread(by['gateway+redis'])} | {ratio(by['gateway+redis'], by['nginx'])} |"
        )
    lines += ["", "| us, or kB | nginx | gateway | with Valkey |", "|---|---|---|---|"]
    for case, field in (
        ("latency_1", "latency_p50_us"), ("latency_1", "latency_p99_us"),
        ("latency_16", "latency_p50_us"), ("latency_16", "latency_p99_us"),
        ("chunk_500x50_edited", "delay_p50_us"), ("chunk_500x50_edited", "delay_p99_us"),
        ("chunk_1000x50_edited", "delay_p50_us"), ("chunk_1000x50_edited", "delay_p99_us"),
        ("idle", "kb_per_stream"), ("idle", "base_kb"),
    ):  # fmt: skip
        cells = [spread(numbers(done, case, name, field)) for name in names]
        lines.append(f"| {case} {field} | {' | '.join(cells)} |")
    return "\n".join(lines)


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                          text=True, check=False, cwd=Path(__file__).parent)  # fmt: skip
    return done.stdout.strip() or "unknown"


def machine() -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    return (f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, "
            f"Python {platform.python_version()}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
