"""A store that knows no money is told what SQL says, once for all who wait."""

import asyncio

import msgspec
import pytest

from gateway.balances import Balances
from gateway.contract.errors import StoreAway
from gateway.link.client import LinkAway
from gateway.link.messages import BalancesAnswer, BalancesAsked
from quotas.calendar import LIFETIME, periods_at
from quotas.limits import Charge, Limit
from quotas.ports import Seed
from quotas.store.memory import MemoryStore

NOW_MS = 1_800_000_000_000
BUDGET = Limit("t1", "tenant a", "money", "quota", 1_000, 0, 1, "day")
PERIODS = periods_at("day", NOW_MS)
CHARGES = (Charge(BUDGET, 50, PERIODS),)


class Control:
    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def ask(self, kind, body, timeout_s):
        assert kind == "balances"
        self.asked.append(msgspec.msgpack.decode(body, type=BalancesAsked))
        await asyncio.sleep(0)
        if self.answer is None:
            raise LinkAway("control is away")
        return msgspec.msgpack.encode(self.answer)


async def built(balances, store, charges=CHARGES):
    return await balances.build("t1", 1, charges, await store.epoch("t1"))


def reserve(store, request_id, amount):
    return store.reserve("t1", request_id, (Charge(BUDGET, amount, PERIODS),), 60)


async def test_money_is_refused_until_it_was_counted():
    store = MemoryStore(lambda: NOW_MS)
    control = Control(BalancesAnswer((Seed(BUDGET, 900, PERIODS.this_id),)))
    balances = Balances(store, control.ask, list)

    assert (await reserve(store, "r1", 50)).reason == "unbuilt"
    assert await built(balances, store)
    assert (await reserve(store, "r1", 50)).admitted
    refused = await reserve(store, "r2", 51)
    assert (refused.admitted, refused.levels[0].remaining) == (False, 50)


async def test_those_who_wait_wait_for_one_count():
    control = Control(BalancesAnswer())
    store = MemoryStore(lambda: NOW_MS)
    balances = Balances(store, control.ask, list)
    assert all(await asyncio.gather(*(built(balances, store) for _ in range(9))))
    assert len(control.asked) == 1
    assert (control.asked[0].tenant_id, control.asked[0].tag) == (1, "t1")
    assert control.asked[0].limits == (BUDGET,)


async def test_while_control_is_away_money_is_refused():
    store = MemoryStore(lambda: NOW_MS)
    with pytest.raises(StoreAway):
        await built(Balances(store, Control(None).ask, list), store)


async def test_what_another_process_was_told_is_not_asked_for_again():
    control = Control(BalancesAnswer(counted_before=True))
    store = MemoryStore(lambda: NOW_MS)
    assert await built(Balances(store, control.ask, list), store)


async def test_only_levels_that_the_store_does_not_know_are_asked_for():
    store = MemoryStore(lambda: NOW_MS)
    other = Limit("t1", "tenant a", "money", "quota", 1_000, 0, 1, "lifetime")
    control = Control(BalancesAnswer((Seed(BUDGET, 900, PERIODS.this_id),)))
    balances = Balances(store, control.ask, list)
    await built(balances, store)
    await built(balances, store, (*CHARGES, Charge(other, 1, LIFETIME)))

    assert [each.limits for each in control.asked] == [(BUDGET,), (other,)]
