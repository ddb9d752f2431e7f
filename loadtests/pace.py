"""Admissions at a steady pace: how long one takes, and what it costs the server.

Open loop: each reserve of three scopes x three limits is due at its own time, and its wait is counted
from then, however busy this process or the server was; each is settled a little later. The server's
time is its own count (``INFO commandstats``). And the same reserve and settle in the in-process store.
Used by ``loadtests/limits.py``.
"""

import asyncio
import gc
import time

import msgspec

from quotas.limits import Charge, Limit
from quotas.ports import Settlement
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from tests.support.valkey import Valkey

SCOPES = ("t1", "p1", "k1")
#: What a request reserves, and what it is settled at.
RESERVED = {"requests": 1, "tokens": 500, "concurrency": 1}
USED = RESERVED | {"tokens": 300}
RUNS_S = 0.2
#: Of the server's time the best of so many rounds of so many steps is kept: the least disturbed.
ROUNDS, EACH, AT_ONCE = 20, 200, 20
#: The same in process: many short rounds, so that one of them is likely to be alone on its core.
ROUNDS_HERE, EACH_HERE = 200, 500


class Pace(msgspec.Struct, frozen=True):
    """Waits in seconds, sorted; the server's time a step, in microseconds."""

    waits_s: list[float]
    reserve_us: float
    settle_us: float

    def quantile_ms(self, share: float) -> float:
        return 1000 * self.waits_s[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


def limits() -> tuple[Limit, ...]:
    return tuple(
        limit
        for scope in SCOPES
        for limit in (
            Limit(scope, scope, "requests", "bucket", 10**6, 10**6, 1),
            Limit(scope, scope, "tokens", "bucket", 10**9, 10**9, 1),
            Limit(scope, scope, "concurrency", "concurrency", 10**5, 0, 1, "now"),
        )
    )


async def pace(server: Valkey, *, per_second: int, seconds: float) -> Pace:
    """So many admissions a second for so long, over TCP on loopback."""
    store = RedisStore(server.tcp_url, name="redis", owner="o1", timeout_s=5.0)
    await store.start()
    held = limits()
    charges = tuple(Charge(limit, RESERVED[limit.dimension]) for limit in held)
    charged = tuple(Charge(limit, USED[limit.dimension]) for limit in held)
    waits_s: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int, due_s: float) -> None:
        name = f"{number:032x}"
        verdict = await store.reserve("t1", name, charges, 3600)
        waits_s.append(time.perf_counter() - due_s)
        assert verdict.admitted
        await asyncio.sleep(RUNS_S)
        store.settle(Settlement("t1", name, verdict.epoch, charged, {}))

    await one(-1 & 0xFFFF, time.perf_counter())
    waits_s.clear()
    began_s = time.perf_counter()
    for number in range(int(per_second * seconds)):
        due_s = began_s + number / per_second
        if due_s > time.perf_counter():
            await asyncio.sleep(due_s - time.perf_counter())
        task = asyncio.create_task(one(number, due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    assert await store.flush(10)
    reserve_us, settle_us = await _server_us(store, server, charges, charged)
    await store.close()
    return Pace(sorted(waits_s), reserve_us, settle_us)


async def _server_us(
    store: RedisStore, server: Valkey, charges: tuple[Charge, ...], charged: tuple[Charge, ...]
) -> tuple[float, float]:
    """The server's time of a reserve and of a settle, twenty of them at a time."""
    best = [float("inf")] * 2
    for turn in range(ROUNDS):
        names = [f"{turn:16x}{number:16x}" for number in range(EACH)]
        _reset(server)
        epochs: list[str] = []
        for at in range(0, EACH, AT_ONCE):
            some = names[at : at + AT_ONCE]
            held = await asyncio.gather(*(store.reserve("t1", n, charges, 3600) for n in some))
            epochs += [verdict.epoch for verdict in held]
        best[0] = min(best[0], _spent_us(server))
        for name, epoch in zip(names, epochs, strict=True):
            store.settle(Settlement("t1", name, epoch, charged, {}))
        _reset(server)
        assert await store.flush(10)
        best[1] = min(best[1], _spent_us(server))
    return best[0], best[1]


async def in_process_us() -> float:
    """A reserve and its settle in this process, as a gateway makes them: the best of the rounds."""
    store = MemoryStore()
    held = limits()
    charges = tuple(Charge(limit, RESERVED[limit.dimension]) for limit in held)
    charged = tuple(Charge(limit, USED[limit.dimension]) for limit in held)
    best = float("inf")
    gc.collect()
    gc.freeze()  # as a data process does once it serves
    for turn in range(ROUNDS_HERE):
        names = [f"{turn:16x}{number:16x}" for number in range(EACH_HERE)]
        began_s = time.perf_counter()
        for name in names:
            verdict = await store.reserve("t1", name, charges, 3600)
            store.settle(Settlement("t1", name, verdict.epoch, charged, {}))
        best = min(best, (time.perf_counter() - began_s) / EACH_HERE * 1e6)
        await asyncio.sleep(0)
    gc.unfreeze()
    seen = await store.inspect("t1", charges)
    assert all(gauge.used == 0 for gauge in seen.gauges[2::3]), "nothing is held"
    return best


def _reset(server: Valkey) -> None:
    server.admin.config_resetstat()


def _spent_us(server: Valkey) -> float:
    return float(server.admin.info("commandstats")["cmdstat_fcall"]["usec_per_call"])
