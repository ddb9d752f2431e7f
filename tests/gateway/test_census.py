"""How many share the store: never fewer than the settings say, and the most of half a minute."""

from gateway.census import REMEMBERED_S, Census
from quotas.errors import StoreUnavailable


class Store:
    def __init__(self):
        self.living = 1
        self.away = False
        self.left = 0

    async def heartbeat(self, *, leaving=False):
        if self.away:
            raise StoreUnavailable("away")
        self.left += leaving
        return self.living


class Bench:
    def __init__(self, floor=2):
        self.store = Store()
        self.now_s = 0.0
        self.census = Census(self.store, floor, lambda: self.now_s)

    async def told(self, living):
        self.store.living = living
        await self.census.beat()
        return self.census.processes()


async def test_more_than_the_settings_say_are_learned_and_fewer_are_not():
    bench = Bench(floor=2)
    assert bench.census.processes() == 2
    assert await bench.told(1) == 2
    assert await bench.told(7) == 7


async def test_a_smaller_number_stands_only_after_half_a_minute():
    bench = Bench(floor=1)
    await bench.told(6)
    bench.now_s = REMEMBERED_S - 1
    assert await bench.told(3) == 6
    bench.now_s = REMEMBERED_S + 1
    assert await bench.told(3) == 3


async def test_the_last_number_stands_while_the_store_is_away():
    bench = Bench()
    await bench.told(5)
    bench.store.away = True
    bench.now_s = 600.0
    assert await bench.told(9) == 5
    await bench.census.leave()
    assert bench.store.left == 0


async def test_who_stops_says_so():
    bench = Bench()
    await bench.census.leave()
    assert bench.store.left == 1
