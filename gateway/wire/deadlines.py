"""One coarse timer wheel for every deadline of a process.

A timer a request costs microseconds each (asyncio.timeout: 3-5 us); moving a due time costs an
assignment. A deadline fires up to two ticks late, never early. A cancelled one is unlinked at once
and holds nothing of its request. Time in which the process itself stood still (a suspended machine,
a blocked loop) counts against nobody. The idea: Varghese and Lauck, "Hashed and Hierarchical Timing
Wheels", 1987 (scheme 6, one revolution).
"""

import asyncio
import logging
from collections.abc import Callable

SLOTS = 512
#: The most that one turn of the wheel catches up with.
CATCH_UP_S = 1.0
log = logging.getLogger("gateway.wire.deadlines")


class Deadline:
    """``due`` and ``at`` are ticks: when it fires, and when the wheel looks at it next."""

    __slots__ = ("_wheel", "at", "callback", "due", "slot")

    def __init__(self, wheel: "Wheel", due: int, callback: Callable[[], None]) -> None:
        self._wheel = wheel
        self.due = due
        self.at = due
        self.callback: Callable[[], None] | None = callback
        self.slot: set[Deadline] | None = None

    @property
    def armed(self) -> bool:
        """False once it has fired or was cancelled."""
        return self.callback is not None

    def cancel(self) -> None:
        """It never fires; safe to repeat."""
        self.callback = None
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None

    def move(self, delay_s: float) -> None:
        """Due ``delay_s`` from now; a later due time only stores a number. Nothing once spent."""
        due = self.due = self._wheel.tick_at(delay_s)
        if due < self.at and self.callback is not None:
            self._wheel.place(self)


class Wheel:
    """``tick_s`` is the grain, above 0. ``advance`` is public so that tests turn it by hand."""

    def __init__(self, tick_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._tick_s = tick_s
        self._loop = loop
        self._slots: list[set[Deadline]] = [set() for _ in range(SLOTS)]
        self._now = 0
        self._began_s = loop.time()
        self._catch_up = max(1, int(CATCH_UP_S / tick_s))
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Deadlines that may still fire."""
        return sum(map(len, self._slots))

    def start(self) -> None:
        """Turn with the loop's clock from here on."""
        if self._handle is None:
            self._began_s = self._loop.time() - self._now * self._tick_s
            self._handle = self._loop.call_later(self._tick_s, self._turn)

    def stop(self) -> None:
        """Stand still; deadlines stay where they are."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def add(self, delay_s: float, callback: Callable[[], None]) -> Deadline:
        """Run ``callback`` once, ``delay_s`` from now."""
        deadline = Deadline(self, self.tick_at(delay_s), callback)
        self.place(deadline)
        return deadline

    def tick_at(self, delay_s: float) -> int:
        """The first tick that is surely not before ``delay_s`` from now."""
        return self._now + int(delay_s / self._tick_s) + 2

    def place(self, deadline: Deadline) -> None:
        """Put it where the wheel meets it when it is due, or a revolution from now at the latest."""
        if deadline.slot is not None:
            deadline.slot.discard(deadline)
        deadline.at = min(deadline.due, self._now + SLOTS - 1)
        slot = self._slots[deadline.at % SLOTS]
        slot.add(deadline)
        deadline.slot = slot

    def advance(self) -> None:
        """One tick: fire what is due, re-place what has moved or lies a revolution ahead."""
        self._now += 1
        slot = self._slots[self._now % SLOTS]
        if not slot:
            return
        met = list(slot)
        slot.clear()
        for deadline in met:
            callback = deadline.callback
            if callback is None or deadline.slot is not slot:
                continue  # an earlier callback of this tick cancelled or moved it
            deadline.slot = None
            if deadline.due > self._now:
                self.place(deadline)
                continue
            deadline.callback = None
            try:
                callback()
            except Exception:  # one deadline's bug must not stop the others
                log.exception("a deadline failed")

    def _turn(self) -> None:
        """Catch up with the clock, then sleep a tick."""
        behind = int((self._loop.time() - self._began_s) / self._tick_s) - self._now
        if behind > self._catch_up:
            self._began_s += (behind - self._catch_up) * self._tick_s
            behind = self._catch_up
        for _ in range(behind):
            self.advance()
        if self._handle is not None:
            self._handle = self._loop.call_later(self._tick_s, self._turn)
