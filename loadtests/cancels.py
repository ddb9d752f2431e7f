"""Reserves that are cancelled, or that time out while the server hangs: who gets what, what stays held.

Every answer that does come must be the asker's own, and when all is settled nothing is held. Used by
``loadtests/limits.py``.
"""

import asyncio
import random

import msgspec

from quotas.errors import ReservationRefused, StoreUnavailable
from quotas.limits import Charge, Limit
from quotas.store.redis import RedisStore
from tests.support.valkey import Valkey

ROOM = 10**9
AT_ONCE = 200


class Outcome(msgspec.Struct):
    lost: int = 0  # cancelled or late
    wrong: int = 0  # answers that were somebody else's
    leaked: int = 0  # units and holds that nobody has any more


async def cancel(server: Valkey, wanted: int, *, chance: int = 11) -> Outcome:
    """Ask until so many calls were lost, a hang of the server now and then."""
    drawn, outcome = random.Random(chance), Outcome()
    store = RedisStore(server.unix_url, name="redis", owner="o1", timeout_s=0.25)
    await store.start()
    tokens = Limit("t1", "t1", "tokens", "bucket", ROOM, 1, 1)
    holds = Limit("t1", "t1", "concurrency", "concurrency", ROOM, 0, 1, "now")

    async def ask(tag: str, name: str, amount: int) -> None:
        own = Limit(f"k{name}", name, "tokens", "bucket", ROOM, 1, 1)
        try:
            verdict = await store.reserve(
                tag, name, [Charge(tokens, amount), Charge(holds, 1), Charge(own, amount)], 60
            )
        except StoreUnavailable:
            outcome.lost += 1
            return
        except ReservationRefused:
            outcome.wrong += 1
            return
        outcome.wrong += verdict.levels[2].remaining != ROOM - amount
        store.release(tag, name)

    tag, turn = "cancels", 0
    while outcome.lost < wanted:
        turn += 1
        if turn % 100 == 0:
            server.pause()
        tasks = [
            asyncio.create_task(ask(tag, f"{turn}-{n}", drawn.randint(1, 1_000)))
            for n in range(AT_ONCE)
        ]
        for _ in range(drawn.randrange(8)):
            await asyncio.sleep(0)
        if turn % 100:
            for task in drawn.sample(tasks, AT_ONCE * 3 // 4):
                outcome.lost += task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if turn % 100 == 0:
            server.resume()
            await store.flush(30)
    assert await store.flush(60)
    seen = await store.inspect(tag, [Charge(tokens, 0), Charge(holds, 0)])
    outcome.leaked = sum(ROOM - level.remaining for level in seen.verdict.levels)
    await store.close()
    return outcome
