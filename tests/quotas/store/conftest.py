"""Both stores behind one rig: the store, its clock, and a new life of its data."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

import pytest

from quotas.calendar import Periods
from quotas.limits import Charge, Verdict
from quotas.ports import QuotaStore, Seed
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from tests.support.valkey import Valkey, own_valkey, valkey
from tests.support.valkey_cluster import ValkeyCluster, own_cluster, valkey_cluster

__all__ = ["own_cluster", "own_valkey", "valkey", "valkey_cluster"]

_tags = itertools.count()


@pytest.fixture
def tag() -> str:
    """A tenant nobody else has."""
    return f"t{next(_tags)}"


class Rig:
    """What the conformance suite needs of a store. ``settled`` waits for every queued step."""

    store: QuotaStore

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._ids = itertools.count()

    def new_id(self) -> str:
        return f"r{next(self._ids)}"

    async def reserve(self, *charges: Charge, reservation_id: str = "") -> Verdict:
        return await self.store.reserve(self.tag, reservation_id or self.new_id(), charges, 3600)

    async def levels(self, *limits) -> list[int]:
        """Units left, by a reservation of nothing."""
        verdict = await self.reserve(*(Charge(limit, 0) for limit in limits))
        return [level.remaining for level in verdict.levels]

    async def settled(self) -> None:
        assert await self.store.flush(3.0)

    def clock_ms(self) -> int:
        raise NotImplementedError

    def periods(self, ends_in_ms: int = 60_000) -> Periods:
        """A period that ends so soon, and the next."""
        ends_ms = self.clock_ms() + ends_in_ms
        return Periods("p1", ends_ms - 86_400_000, ends_ms, "p2", ends_ms + 86_400_000)

    async def seeded(self, *seeds: Seed, counted: Sequence[str] = ()) -> str:
        """The tag's epoch, with its money seeded."""
        epoch = await self.store.epoch(self.tag)
        assert await self.store.seed(self.tag, epoch, seeds, counted)
        return epoch

    async def wait(self, ms: int) -> None:
        raise NotImplementedError

    async def lose_everything(self) -> None:
        raise NotImplementedError


class MemoryRig(Rig):
    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.now_ms = 1_000_000
        self.store = MemoryStore(lambda: self.now_ms)

    def clock_ms(self) -> int:
        return self.now_ms

    async def wait(self, ms: int) -> None:
        self.now_ms += ms

    async def lose_everything(self) -> None:
        self.store = MemoryStore(lambda: self.now_ms)


class RedisRig(Rig):
    store: RedisStore

    def __init__(self, tag: str, server: Valkey | ValkeyCluster, store: RedisStore) -> None:
        super().__init__(tag)
        self.server = server
        self.store = store

    def clock_ms(self) -> int:
        seconds, micros = self.server.admin.time()
        return seconds * 1000 + micros // 1000

    async def wait(self, ms: int) -> None:
        """Until the server's clock is ``ms`` past its last reply to the store."""
        until_ms = self.store.clock_ms + ms
        while True:
            missing_ms = until_ms - self.clock_ms()
            if missing_ms <= 0:
                return
            await asyncio.sleep(missing_ms / 1000)

    async def lose_everything(self) -> None:
        self.server.flushall()


@pytest.fixture(params=["memory", "unix socket", "tcp", "cluster"])
async def rig(request: pytest.FixtureRequest, tag: str) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig(tag)
        return
    name = "valkey_cluster" if request.param == "cluster" else "valkey"
    server: Valkey | ValkeyCluster = request.getfixturevalue(name)
    url = server.unix_url if request.param == "unix socket" else server.tcp_url
    store = RedisStore(url, name="redis", owner="o1", timeout_s=2.0)
    await store.start()
    yield RedisRig(tag, server, store)
    await store.close()
