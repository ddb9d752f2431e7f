"""Clients in many processes against limits that all tenants share, one process killed: overshoot, waste.

Tokens of a platform and slots of a pool, drawn from the leases of ``gateway.leases`` over a real
Valkey; random lengths, aborts, a kill -9. What was used is counted from the processes' own logs, and
how many ran at once from the times in them. The same clients in two other modes, so that the check is
known to see an overshoot:

    leases   units are taken from the store before they are drawn (the product)
    deltas   a level of a moment ago is trusted, and what was used is reported every 100 ms
    leak     the product with a bug: half of what a request used is given back as well

Used by ``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from gateway.leases import Leases
from gateway.telemetry.counters import Counters
from quotas.errors import StoreUnavailable
from quotas.leases import PART
from quotas.limits import Charge, Limit, Verdict
from quotas.ports import Settlement
from quotas.store.redis import RedisStore

PROCESSES = 4
CLIENTS = 64
CAP = 512
LARGEST = 350 + CAP
DELTAS_EVERY_S = 0.1
ROOT = Path(__file__).parents[1]
MODES = ("leases", "deltas", "leak")


class Setting(msgspec.Struct, frozen=True):
    """``limit``: tokens; ``slots``: at once. ``kill_s`` < 0: nobody is."""

    mode: str
    seed: int
    seconds: float
    limit: int = 40_000
    per_minute: int = 60
    slots: int = 24
    duration_s: tuple[float, float] = (0.05, 0.2)
    kill_s: float = 0.4


class Result(msgspec.Struct, frozen=True):
    """``unspent``: of what was allowed, what nobody used; ``dead``: what a killed process had taken
    of it. ``at_once``: the most requests that ran at one moment.
    """

    used: int
    allowed: int
    unspent: int
    dead: int
    requests: int
    covered: float  # of the draws, those that asked nobody
    at_once: int
    slots: int

    @property
    def overshoot(self) -> float:
        return max(self.used / self.allowed, self.at_once / self.slots) - 1


def limits(setting: Setting, scope: str) -> tuple[Limit, Limit]:
    return (
        Limit(f"A{scope}", "platform", "tokens", "bucket", setting.limit, setting.per_minute, 1),
        Limit(f"G{scope}", "pool", "concurrency", "concurrency", setting.slots, 0, 1, "now"),
    )


class Process:
    """One worker's way to its units, by mode."""

    def __init__(self, setting: Setting, store: RedisStore, scope: str, number: int) -> None:
        self.mode = setting.mode
        self.store = store
        self.tokens, self.slots = limits(setting, scope)
        self.counters = Counters()
        self.leases = Leases(
            store,
            self.counters,
            name=f"p{number}",
            processes=lambda: PROCESSES,
            monotonic=time.monotonic,
        )
        self.level = 0
        self.delta = 0

    async def run(self) -> None:
        """Beside the clients: the leases' own housekeeping, or the reports."""
        while True:
            if self.mode != "deltas":
                self.leases.tick()
                await asyncio.sleep(0.5)
                continue
            seen = await self.store.inspect(self.tokens.scope, (Charge(self.tokens, 0),))
            self.level = seen.verdict.levels[0].remaining
            owed, self.delta = self.delta, 0
            if owed:
                charged = (Charge(self.tokens, owed),)
                name = f"{time.monotonic_ns()}"
                self.store.settle(Settlement(self.tokens.scope, name, "", charged, {}))
            await asyncio.sleep(DELTAS_EVERY_S)

    async def ask(self, reserved: int, actual: int) -> object | None:
        """What to hand to ``end``; None when refused."""
        if self.mode == "deltas":
            if self.level - self.delta < reserved:
                return None
            self.delta += actual
            return actual
        draw = self.leases.draw(
            (Charge(self.tokens, reserved), Charge(self.slots, 1)), away=lambda _tag: False
        )
        try:
            refused = await self.leases.fetch(draw) if draw.lacking else None
        except StoreUnavailable:
            self.leases.put_back(draw)
            return None
        if isinstance(refused, Verdict):
            self.leases.put_back(draw)
            return None
        return draw

    def end(self, draw: object, actual: int) -> None:
        if self.mode == "deltas":
            return
        used = actual // 2 if self.mode == "leak" else actual
        self.leases.settle(draw, (Charge(self.tokens, used), Charge(self.slots, 0)))  # type: ignore[arg-type]


async def client(setting: Setting, process: Process, number: int, log) -> None:
    chance = random.Random(f"{setting.seed}-{number}")
    until_s = time.monotonic() + setting.seconds
    turn = 0
    while time.monotonic() < until_s:
        prompt, completion = chance.randrange(150, 350), chance.randrange(230, CAP)
        if chance.random() < 0.2:
            completion = chance.randrange(completion)
        actual, turn = prompt + completion, turn + 1
        draw = await process.ask(prompt + CAP, actual)
        if draw is None:
            await asyncio.sleep(0.05 * chance.random())
            continue
        name = f"{number}-{turn}"
        log.write(json.dumps(["began", name, actual, time.monotonic()]) + "\n")
        log.flush()
        await asyncio.sleep(chance.uniform(*setting.duration_s))
        log.write(json.dumps(["ended", name, 0, time.monotonic()]) + "\n")
        log.flush()
        process.end(draw, actual)


async def work(setting: Setting, url: str, scope: str, number: int, log_path: Path) -> None:
    store = RedisStore(url, name="redis", owner=f"{scope}-{number}", timeout_s=5.0)
    await store.start()
    process = Process(setting, store, scope, number)
    beside = asyncio.create_task(process.run())
    await asyncio.sleep(0.01)
    each = CLIENTS // PROCESSES
    with log_path.open("w") as log:
        log.write(json.dumps(["up", "", 0, time.monotonic()]) + "\n")
        log.flush()
        await asyncio.gather(
            *(client(setting, process, n, log) for n in range(number * each, (number + 1) * each))
        )
        held = process.leases.held(process.tokens)
        draws = process.counters.counters["tf_lease_draws_total"]
        told = [held.unspent, draws["covered"], draws["asked"] + draws["refused"]]
        log.write(json.dumps(["left", "", told, time.monotonic()]) + "\n")
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    process.leases.close()
    assert await store.flush(10)
    await store.close()


async def run(setting: Setting, url: str) -> Result:
    """One run, of levels of its own."""
    scope = f"{setting.mode}-{setting.seed}-{time.monotonic_ns()}"
    folder = Path(tempfile.mkdtemp(prefix="leases"))
    logs = [folder / f"{n}" for n in range(PROCESSES)]
    told = [msgspec.json.encode(setting).decode(), url, scope]
    workers = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "loadtests.leases", *told, str(n), str(logs[n])], cwd=ROOT
        )
        for n in range(PROCESSES)
    ]
    killed, killed_s = -1, 0.0
    while not all(log.exists() and log.stat().st_size for log in logs):  # noqa: ASYNC110
        await asyncio.sleep(0.002)  # another process's files
    if setting.kill_s >= 0:
        await asyncio.sleep(setting.kill_s)
        killed = random.Random(setting.seed).randrange(PROCESSES)
        workers[killed].kill()
        killed_s = time.monotonic()
    for number, worker in enumerate(workers):
        rc = await asyncio.to_thread(worker.wait)
        assert rc == 0 or number == killed, rc
    return await _count(setting, url, scope, logs, killed, killed_s)


async def _count(
    setting: Setting, url: str, scope: str, logs: list[Path], killed: int, killed_s: float
) -> Result:
    used = requests = covered = drawn = unspent = of_dead = 0
    moments: list[tuple[float, int]] = []
    began_s, ended_s = float("inf"), 0.0
    for number, log in enumerate(logs):
        running = set()
        for line in log.read_text().splitlines():
            what, name, amount, at_s = json.loads(line)
            began_s, ended_s = min(began_s, at_s), max(ended_s, at_s)
            if what == "began":
                used, requests = used + amount, requests + 1
                of_dead += amount if number == killed else 0
                running.add(name)
                moments.append((at_s, 1))
            elif what == "ended":
                running.discard(name)
                moments.append((at_s, -1))
            elif what == "left":
                unspent, covered, drawn = (
                    unspent + amount[0],
                    covered + amount[1],
                    drawn + amount[1] + amount[2],
                )
        assert number == killed or not running
        moments += [(killed_s, -1)] * len(running)
    at_once = running_now = 0
    for _, step in sorted(moments):  # an end before a beginning of the same moment
        running_now += step
        at_once = max(at_once, running_now)
    allowed = setting.limit + int(setting.per_minute * (ended_s - began_s) / 60) + 1
    store = RedisStore(url, name="redis", owner="parent", timeout_s=5.0)
    await store.start()
    tokens, _ = limits(setting, scope)
    seen = await store.inspect(tokens.scope, (Charge(tokens, 0),))
    await store.close()
    left = seen.verdict.levels[0].remaining
    dead = max(0, allowed - used - left - unspent) if killed >= 0 else 0
    return Result(
        used=used,
        allowed=allowed,
        unspent=allowed - used,
        dead=dead,
        requests=requests,
        covered=covered / max(1, drawn),
        at_once=at_once,
        slots=setting.slots if setting.mode != "deltas" else CLIENTS,
    )


def wasted_at_most(setting: Setting) -> int:
    """Of a run without a kill that used the limit up: every process's lease, and less than one
    request, which did not fit any more.
    """
    return setting.limit // PART + LARGEST


def main() -> None:
    setting, url, scope, number, path = sys.argv[1:]
    asyncio.run(
        work(msgspec.json.decode(setting, type=Setting), url, scope, int(number), Path(path))
    )


if __name__ == "__main__":
    main()
