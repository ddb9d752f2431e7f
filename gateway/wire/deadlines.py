"""One coarse timer wheel for every deadline of a process.

A timer a request costs microseconds each (asyncio.timeout: 3-5 us); moving a due time costs an
assignment. A deadline fires up to one tick late, never early; where the loop itself stood still, the
wheel did too, so that nobody is late by our fault. A cancelled one is unlinked at once and holds
nothing of its request. The idea: Varghese and Lauck, "Hashed and Hierarchical Timing
Wheels", 1987 (scheme 6, one revolution).
"""

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache

import msgspec

SLOTS = 512
#: A tick that does not come.
NEVER = 1 << 62
log = logging.getLogger("gateway.wire.deadlines")


class Deadline(msgspec.Struct, eq=False):
    """``due`` is in ticks; ``at``: the tick at which its slot comes round, never after ``due``.

    One that has fired rests until it is moved; a cancelled one is done for good.
    """

    wheel: "Wheel"
    due: int
    callback: Callable[[], None] | None
    at: int = NEVER
    slot: "set[Deadline] | None" = None

    def cancel(self) -> None:
        """It never fires; safe to repeat."""
        self.callback = None
        self.due = self.at = NEVER
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None

    def move(self, delay_s: float) -> None:
        """Due ``delay_s`` from now; only a time before its slot's costs more than a number."""
        wheel = self.wheel
        self.aim(wheel.now + wheel.ticks(delay_s))

    def aim(self, due: int) -> None:
        """Due at that tick."""
        self.due = due
        if due < self.at and self.callback is not None:
            self.wheel.place(self)

    def rest(self) -> None:
        """Due at no time until it is moved."""
        self.due = NEVER


class Wheel:
    """``tick_s`` is the grain. ``advance`` is public so that tests turn it by hand."""

    def __init__(self, tick_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._tick_s = tick_s
        self._loop = loop
        #: Ticks from now to the first that is not before a delay in seconds.
        self.ticks = lru_cache(maxsize=256)(self._ticks)
        self._slots: list[set[Deadline]] = [set() for _ in range(SLOTS)]
        self.now = 0  # in ticks
        self._began_s = loop.time()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._began_s = self._loop.time() - self.now * self._tick_s
            self._handle = self._loop.call_later(self._tick_s, self._turn)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def add(self, delay_s: float, callback: Callable[[], None]) -> Deadline:
        return self.add_at(self.now + self.ticks(delay_s), callback)

    def add_at(self, due: int, callback: Callable[[], None]) -> Deadline:
        deadline = Deadline(self, due, callback)
        self.place(deadline)
        return deadline

    def _ticks(self, delay_s: float) -> int:
        return int(delay_s / self._tick_s) + 2

    def place(self, deadline: Deadline) -> None:
        if deadline.slot is not None:
            deadline.slot.discard(deadline)
        at = deadline.at = min(deadline.due, self.now + SLOTS - 1)
        slot = deadline.slot = self._slots[at % SLOTS]
        slot.add(deadline)

    def advance(self) -> None:
        """One tick: fire what is due, re-place what has moved or lies a revolution ahead."""
        self.now += 1
        slot = self._slots[self.now % SLOTS]
        if not slot:
            return
        due = list(slot)
        slot.clear()
        for deadline in due:
            callback = deadline.callback
            if callback is None or deadline.slot is not slot:
                continue  # cancelled, or moved, by one that fired before it in this tick
            deadline.slot = None
            if deadline.due > self.now:
                self.place(deadline)
                continue
            deadline.due = deadline.at = NEVER
            try:
                callback()
            except Exception:  # one deadline's bug must not stop the others
                log.exception("a deadline failed")

    def _turn(self) -> None:
        """One tick where the clock says so, then sleep until the next."""
        now_s = self._loop.time()
        if now_s - self._began_s >= (self.now + 1) * self._tick_s:
            # More than a tick behind is the loop's own lag: what was set in it counts from before it.
            self._began_s = max(self._began_s, now_s - (self.now + 2) * self._tick_s)
            self.advance()
        until_next_s = (self.now + 1) * self._tick_s + self._began_s - now_s
        self._handle = self._loop.call_later(until_next_s, self._turn)
