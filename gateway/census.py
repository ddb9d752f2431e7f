"""How many data processes share the store: each says that it lives, and is told how many do.

What is divided by that number must not be divided by too few: of the answers of the last half minute
the largest stands, and never less than what the settings say (``TF_PROCESSES`` x ``TF_HOSTS``). While
the store is away the last number stands. Not here: what is divided (``gateway.admission``,
``quotas.leases``).
"""

import asyncio
from collections import deque
from collections.abc import Callable

from quotas.errors import StoreUnavailable
from quotas.ports import QuotaStore

BEAT_S = 2.0
#: A process that died counts as long as its lease; so does one that a store lost with its data.
REMEMBERED_S = 30.0


class Census:
    """One per data process. ``floor``: as many as there are at least."""

    def __init__(self, store: QuotaStore, floor: int, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._floor = max(1, floor)
        self._monotonic = monotonic
        self._told: deque[tuple[float, int]] = deque()
        self._most = self._floor

    def processes(self) -> int:
        """As last known."""
        return self._most

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_S)

    async def beat(self) -> None:
        try:
            told = await self._store.heartbeat()
        except StoreUnavailable:
            return
        now_s = self._monotonic()
        self._told.append((now_s, told))
        while self._told[0][0] < now_s - REMEMBERED_S:
            self._told.popleft()
        self._most = max(self._floor, *(each for _, each in self._told))

    async def leave(self) -> None:
        """On the way out: nobody waits for its lease to end."""
        try:
            await self._store.heartbeat(leaving=True)
        except StoreUnavailable:
            return
