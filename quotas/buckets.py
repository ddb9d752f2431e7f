"""Token buckets with a signed level, in exact integers: the reference that both stores run.

A level is counted in ticks, 60,000 a unit, so that a refill of r units a minute is exactly r ticks
a millisecond. It may be negative (debt), never above capacity. The same arithmetic stands in
``store/lua/levels.lua``, where doubles are exact below 2**53. Time is the store's, in ms, and may
step backwards: then nothing flows in, and the bucket is anchored at the new time. Not here: holds
(``store``), where levels are kept, what an admission asks of several buckets at once.

The idea is the continuous token bucket of ATM's GCRA (ITU-T I.371), kept as level and time.
"""

from quotas.limits import Level

TICKS = 60_000
#: Units and units a minute beyond which a level in ticks would leave a double's exact integers.
MAX_UNITS = 10**11
NEVER = -1
#: The time of a bucket that nothing was ever taken from: so long ago that it is full.
UNTOUCHED_MS = -(2**62)


class Bucket:
    """Mutable state: ``level`` ticks at ``at_ms``, under the limit's last known figures; ``full`` is
    the capacity in ticks.
    """

    __slots__ = ("at_ms", "capacity", "full", "level", "per_minute")

    def __init__(self, capacity: int, per_minute: int, now_ms: int = UNTOUCHED_MS) -> None:
        """Full: a bucket that nobody has touched."""
        self.capacity = capacity
        self.per_minute = per_minute
        self.level = self.full = capacity * TICKS
        self.at_ms = now_ms

    def advance(self, now_ms: int) -> int:
        """Let flow in what has by now; the level in ticks."""
        elapsed = now_ms - self.at_ms
        if elapsed > 0:
            self.level = min(self.level + elapsed * self.per_minute, self.full)
        self.at_ms = now_ms
        return self.level

    def configure(self, capacity: int, per_minute: int, now_ms: int) -> int:
        """Advance, then go on under the figures given: a change is not retroactive.

        What flowed in before now did so at the old rate; usage is kept and a surplus is cut. An
        untouched bucket stays so, and full.
        """
        touched = self.at_ms != UNTOUCHED_MS
        level = self.advance(now_ms) if touched else self.level
        if capacity != self.capacity or per_minute != self.per_minute:
            self.capacity = capacity
            self.per_minute = per_minute
            self.full = capacity * TICKS
            self.level = level = min(level, self.full) if touched else self.full
        return level

    def add(self, units: int, now_ms: int) -> None:
        """Give back ``units`` (take, when negative), at the figures the bucket has."""
        self.level = min(self.advance(now_ms) + units * TICKS, self.full)


def fits(level: int, amount: int) -> bool:
    """Whether a level in ticks admits ``amount`` units; nothing asked always fits."""
    return amount <= 0 or level >= amount * TICKS


def wait_ms(level: int, amount: int, capacity: int, per_minute: int) -> int:
    """Until ``amount`` units fit, alone: 0 = now, ``NEVER`` = not by waiting. Exact, rounded up.

    >>> wait_ms(level=0, amount=1, capacity=10, per_minute=60)
    1000
    """
    if fits(level, amount):
        return 0
    if amount > capacity or per_minute <= 0:
        return NEVER
    return -((level - amount * TICKS) // per_minute)


def shown(level: int, capacity: int, per_minute: int) -> Level:
    """A level as callers see it. ``reset_ms`` is 0 when full, or when nothing ever flows in."""
    missing = capacity * TICKS - level
    reset_ms = -(-missing // per_minute) if per_minute > 0 and missing > 0 else 0
    return Level(level // TICKS, reset_ms)
