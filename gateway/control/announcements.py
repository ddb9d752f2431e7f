"""A word to the other hosts that something changed: they poll at once, and not half a second later.

Redis pub/sub, which may lose a word: the poll of the change log is what makes a change certain. Not
here: what changed (``gateway.control.feed``), the stores' own connection (``quotas.store``).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from quotas.store.pipeline import one_server

CHANNEL = "tf:changes"
TIMEOUT_S = 1.0
RETRY_MIN_S = 0.2
RETRY_MAX_S = 5.0
_log = logging.getLogger("gateway.control")


class Announcements:
    """One per control process that shares a Redis. ``poll`` runs for every word that comes."""

    def __init__(self, url: str, poll: Callable[[], Awaitable[None]]) -> None:
        # In a cluster every server hears what is published at any.
        self._redis: Redis = Redis.from_url(one_server(url), socket_connect_timeout=TIMEOUT_S)
        self._poll = poll

    async def announce(self, version: int) -> None:
        """Tell everybody. A Redis that is away costs a second at most and no error."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._redis.publish(CHANNEL, str(version))
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("other hosts follow by their poll: %s", type(error).__name__)

    async def run(self) -> None:
        """Listen for ever; a lost connection is made again, and a poll covers the gap."""
        delay_s = RETRY_MIN_S
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    async for word in channel.listen():
                        delay_s = RETRY_MIN_S
                        if word["type"] in ("subscribe", "message"):
                            await self._poll()
            except (RedisError, OSError) as error:
                _log.info("announcements are away: %s", type(error).__name__)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()
