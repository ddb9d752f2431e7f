"""Prices and contracts that begin or end at a moment said in advance: data processes are told then.

A document is as of the moment when it is loaded, so all that has to happen is that it is loaded
again. While control is away nothing begins; then it does at once. Not here: rows
(``gateway.store.planned``).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from gateway.store import changes
from gateway.store.database import Database
from gateway.store.planned import due

TICK_S = 0.25
_log = logging.getLogger("gateway.control.almanac")


class Almanac:
    """One per control process, made before the first load. ``changed``: tell data processes."""

    def __init__(
        self, db: Database, changed: Callable[[], Awaitable[None]], unix_ms: Callable[[], int]
    ) -> None:
        self._db = db
        self._changed = changed
        self._unix_ms = unix_ms
        self._seen_ms = unix_ms()

    async def run(self) -> None:
        """For ever; what could not be looked up is looked up when the database is back."""
        failing = False
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.turn()
                failing = False
            except (SQLAlchemyError, OSError) as error:
                if not failing:
                    _log.warning("what begins now begins later: %s", type(error).__name__)
                failing = True

    async def turn(self) -> bool:
        """Whether anything began or ended since the last turn."""
        now_ms = self._unix_ms()
        if now_ms <= self._seen_ms:
            return False  # a clock that was set back: what has begun stays
        async with self._db.read() as connection:
            rows = await due(connection, self._seen_ms, now_ms)
        if rows:
            async with self._db.begin() as connection:
                await changes.bump(connection, rows)
            await self._changed()
        self._seen_ms = now_ms
        return bool(rows)
