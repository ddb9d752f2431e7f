"""64 clients in 4 processes against one set of limits, one process killed: is more used than allowed?

Three scopes, random lengths, aborts, and a kill -9 whose open requests the parent settles from the
log they left, as recovery does from a board. The same clients in two other modes, which are how most
limiters work, so that the check is known to see an overshoot:

    reserve  what a request may use is taken first, the true number replaces it (the product)
    after    admitted while anything is left, charged when it has ended
    prompt   the prompt is taken first, the rest when it has ended

With ``denser`` prompts have so many times the tokens that they were estimated at, and answers are as
long as they may be: the overshoot is then at most the errors of the requests open at once, because
debt is repaid before the next one is admitted.

Used by ``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from quotas.errors import StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.ports import Settlement
from quotas.store.redis import RedisStore

PROCESSES = 4
CLIENTS = 64
CAP = 512
#: A request's end is known to the store by then.
SETTLED_S = 0.05
ROOT = Path(__file__).parents[1]
MODES = ("reserve", "after", "prompt")


class Setting(msgspec.Struct, frozen=True):
    """``limit``: the tenant's tokens (its project has a tenth more). ``kill_s`` < 0: nobody is."""

    mode: str
    seed: int
    seconds: float
    limit: int = 20_000
    per_minute: int = 60
    duration_s: tuple[float, float] = (0.2, 0.6)
    reserved_to_actual: float = 0.0  # > 0: reservations that many times what is used
    kill_s: float = 0.6
    denser: float = 1.0


class Result(msgspec.Struct, frozen=True):
    """``overshoot`` of the scope with most of it, in units of what it allows; < 0 is under it."""

    used: int
    allowed: int
    requests: int
    aborted: int
    killed: int
    left: list[int]  # each limit's level at the end, from the store
    errors: int  # of the estimates of requests open at once, at most

    @property
    def overshoot(self) -> float:
        return self.used / self.allowed - 1


def dense_setting(seed: int) -> Setting:
    """Three times denser than estimated, at a rate that is used up several times over."""
    return Setting(
        "reserve",
        seed,
        3.0,
        per_minute=600_000,
        duration_s=(0.05, 0.2),
        kill_s=-1.0,
        denser=3.0,
    )


def limits(setting: Setting, key: int) -> tuple[Limit, ...]:
    size, rate = setting.limit, setting.per_minute
    return tuple(
        Limit(scope, scope, "tokens", "bucket", capacity, rate, 1)
        for scope, capacity in (("t1", size), ("p1", size + size // 10), (f"k{key}", size))
    )


async def client(setting: Setting, store: RedisStore, tag: str, number: int, log) -> None:
    chance = random.Random(f"{setting.seed}-{number}")
    mine = limits(setting, number % 2)
    until_s = time.monotonic() + setting.seconds
    turn = 0
    while time.monotonic() < until_s:
        prompt, completion = chance.randrange(150, 350), chance.randrange(230, CAP)
        aborted = chance.random() < 0.2
        if aborted:
            completion = chance.randrange(completion)
        estimate = prompt
        if setting.denser > 1:
            estimate, completion, aborted = round(prompt / setting.denser), CAP, False
        actual = prompt + completion
        most = estimate + CAP
        if setting.reserved_to_actual:
            most = round(actual * setting.reserved_to_actual)
        asked = {"reserve": most, "after": 1, "prompt": prompt}[setting.mode]
        name = f"{setting.seed}-{number}-{turn}"
        turn += 1
        log.write(json.dumps([name]) + "\n")  # as a board's slot says before it is reserved
        log.flush()
        try:
            verdict = await store.reserve(tag, name, [Charge(each, asked) for each in mine], 3600)
        except StoreUnavailable:
            continue
        if not verdict.admitted:
            # As a client that retries: sooner than told, so that limits are tried all the time.
            await asyncio.sleep(min(0.05, verdict.retry_after_ms / 1000) * chance.random())
            continue
        lasts_s = chance.uniform(*setting.duration_s)
        span = [time.time(), time.time() + lasts_s + SETTLED_S]
        log.write(json.dumps([name, number, actual, aborted, prompt - estimate, span]) + "\n")
        log.flush()
        await asyncio.sleep(lasts_s)
        charged = tuple(Charge(each, actual) for each in mine)
        store.settle(Settlement(tag, name, verdict.epoch, charged, {}))


async def work(setting: Setting, url: str, tag: str, process: int, log_path: Path) -> None:
    store = RedisStore(url, name="redis", owner=f"o{process}", timeout_s=5.0)
    await store.start()
    each = CLIENTS // PROCESSES
    with log_path.open("w") as log:
        await asyncio.gather(
            *(
                client(setting, store, tag, number, log)
                for number in range(process * each, (process + 1) * each)
            )
        )
    assert await store.flush(10)
    await store.close()


def _busy(logs: list[Path]) -> list[int]:
    """Processes that were admitted something by now: the death of another proves nothing."""
    return [
        number
        for number, log in enumerate(logs)
        if any(
            len(json.loads(line)) > 1
            for line in log.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        )
    ]


async def run(setting: Setting, url: str) -> Result:
    """One run; the store is the tag's own. Levels at the end must be what the logs say."""
    tag = f"over-{setting.mode}-{setting.seed}-{time.monotonic_ns()}"
    store = RedisStore(url, name="redis", owner="parent", timeout_s=5.0)
    await store.start()
    folder = Path(tempfile.mkdtemp(prefix="overshoot"))
    command = [sys.executable, "-m", "loadtests.overshoot"]
    told = [msgspec.json.encode(setting).decode(), url, tag]
    workers = [
        subprocess.Popen([*command, *told, str(n), str(folder / f"{n}")], cwd=ROOT)  # noqa: ASYNC220
        for n in range(PROCESSES)
    ]
    logs = [folder / f"{n}" for n in range(PROCESSES)]
    began_s = 0.0
    while not all(log.exists() and log.stat().st_size for log in logs):
        if not began_s and any(log.exists() for log in logs):
            began_s = time.monotonic()
        await asyncio.sleep(0.002)  # another process's files
    began_s = began_s or time.monotonic()
    killed = -1
    if setting.kill_s >= 0:
        await asyncio.sleep(setting.kill_s)
        killed = random.Random(setting.seed).choice(_busy(logs) or range(PROCESSES))
        workers[killed].kill()
    for number, worker in enumerate(workers):
        rc = await asyncio.to_thread(worker.wait)
        assert rc == 0 or number == killed, rc
    open_requests = 0
    used = dict.fromkeys(("t1", "k0", "k1"), 0)
    requests = aborted = 0
    turns: list[tuple[float, int]] = []  # estimates' errors, as requests begin and end
    epoch = await store.epoch(tag)
    for process in range(PROCESSES):
        asked: list[str] = []
        admitted: set[str] = set()
        for line in (folder / f"{process}").read_text().splitlines():
            name, *noted = json.loads(line)
            if not noted:
                asked.append(name)
                continue
            number, actual, left_early, error, (began, ended) = noted
            turns += [(began, error), (ended, -error)]
            admitted.add(name)
            requests += 1
            aborted += left_early
            used["t1"] += actual
            used[f"k{number % 2}"] += actual
            if process == killed:  # a settle that had gone out already changes nothing
                open_requests += 1
                charged = tuple(Charge(each, actual) for each in limits(setting, number % 2))
                store.settle(Settlement(tag, name, epoch, charged, {}))
        for name in asked if process == killed else ():
            if name not in admitted:  # reserved perhaps, and never sent anywhere
                store.release(tag, name)
    assert await store.flush(10)
    took_s = time.monotonic() - began_s
    allowed = setting.limit + int(setting.per_minute * took_s / 60) + 1
    both = [*limits(setting, 0), limits(setting, 1)[2]]
    seen = await store.inspect(tag, [Charge(each, 0) for each in both])
    await store.close()
    left = [level.remaining for level in seen.verdict.levels]
    errors = max(itertools.accumulate(error for _, error in sorted(turns)), default=0)
    return Result(max(used.values()), allowed, requests, aborted, open_requests, left, errors)


def main() -> None:
    setting, url, tag, process, path = sys.argv[1:]
    asyncio.run(
        work(msgspec.json.decode(setting, type=Setting), url, tag, int(process), Path(path))
    )


if __name__ == "__main__":
    main()
