"""Random states of both stores: a client that waits exactly as long as told, alone, is admitted.

Nobody else holds anything, so every wait is a rate's or a period's, and exact: a millisecond less is
refused again. Used by ``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import random

import redis as blocking

from loadtests.histories import Clock, clocked_steps, periods
from quotas.limits import Charge, Limit
from quotas.ports import QuotaStore, Settlement
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore


def limits(chance: random.Random) -> list[Limit]:
    made = [
        Limit(scope, scope, "tokens", "bucket", chance.randint(1, 2_000), rate, 1)
        for scope in ("t1", "p1", "k1")
        for rate in (chance.choice((1, 7, 60, 999, 60_000, 12_345_678)),)
    ]
    made.append(Limit("t1", "t1", "tokens", "quota", chance.randint(500, 5_000), 0, 1, "day"))
    made.append(Limit("t1", "t1", "requests", "bucket", chance.randint(1, 20), 13, 1))
    return made


async def wrong_in_one_state(
    store: QuotaStore, clock: Clock, tag: str, chance: random.Random
) -> bool | None:
    """Whether it was dishonest; None where nothing was refused."""
    mine = limits(chance)

    def charges(amounts: list[int]) -> list[Charge]:
        return [
            Charge(limit, amount, periods(clock.now_ms) if limit.algorithm == "quota" else None)
            for limit, amount in zip(mine, amounts, strict=True)
        ]

    for turn in range(chance.randrange(1, 4)):  # usage and debt, all of it settled
        reserved = charges([0] * len(mine))
        verdict = await store.reserve(tag, f"u{turn}", reserved, 3600)
        used = charges([chance.randrange(limit.capacity + 200) for limit in mine])
        store.settle(Settlement(tag, f"u{turn}", verdict.epoch, tuple(used), {}))
        assert await store.flush(5)
        clock.move(chance.randrange(500))
    wanted = [chance.randint(1, limit.capacity) for limit in mine]
    verdict = await store.reserve(tag, "a", charges(wanted), 3600)
    if verdict.admitted:
        return None
    assert verdict.retry_after_ms > 0
    clock.move(verdict.retry_after_ms - 1)
    early = await store.inspect(tag, charges(wanted))
    clock.move(1)
    then = await store.reserve(tag, "b", charges(wanted), 3600)
    return early.verdict.admitted or not then.admitted


def dishonest(url: str, admin: blocking.Redis, *, states: int, chance: int) -> tuple[int, int]:
    """(refusals tried, how many were dishonest) in so many states, half of them each store's."""

    async def tried() -> tuple[int, int]:
        clock, drawn = Clock(admin), random.Random(chance)
        redis = RedisStore(url, name="redis", owner="o1", timeout_s=5.0)
        await redis.start()
        memory = MemoryStore(lambda: clock.now_ms)
        refused = wrong = 0
        for n in range(states):
            store = (redis, memory)[n % 2]
            outcome = await wrong_in_one_state(store, clock, f"honest{chance}-{n}", drawn)
            refused += outcome is not None
            wrong += outcome is True
        await redis.close()
        return refused, wrong

    with clocked_steps():
        return asyncio.run(tried())
