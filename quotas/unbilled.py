"""How often a key may have an engine work for nothing: a bucket of endings that billed nothing.

Such endings are free work otherwise: an answer cut before its first token, a refusal, an engine that
fails over one kind of body. An ending takes one from the key's bucket after the fact, so the level
may fall below zero, by what was in flight. Kept by each data process for itself: N of them allow N
times as many. Not here: rate limits, which are reserved, shared and exact (``quotas.store``).
"""

#: One ending: what flows back in a millisecond is ``per_minute`` of these.
TICKS = 60_000
#: Keys remembered before those with full buckets are forgotten.
KEYS_MAX = 10_000


class UnbilledEndings:
    """Mutable; ``per_minute`` endings flow back a minute, and as many are had at once. 0 = no limit.

    Times are seconds of one monotonic clock.
    """

    __slots__ = ("_levels", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._levels: dict[int, tuple[int, int]] = {}  # key id -> level in ticks, at (ms)

    def note(self, key_id: int, now_s: float) -> None:
        """One request of the key ended and billed nothing."""
        if not self.per_minute:
            return
        now_ms = int(now_s * 1000)
        if key_id not in self._levels and len(self._levels) >= KEYS_MAX:
            self._forget(now_ms)
        self._levels[key_id] = (self._level(key_id, now_ms) - TICKS, now_ms)

    def wait_ms(self, key_id: int, now_s: float) -> int:
        """0: the key may go on; else when it may. A key that was never noted costs one look-up."""
        if key_id not in self._levels:
            return 0
        lacking = TICKS - self._level(key_id, int(now_s * 1000))
        return 0 if lacking <= 0 else -(-lacking // self.per_minute)

    def _level(self, key_id: int, now_ms: int) -> int:
        full = self.per_minute * TICKS
        level, at_ms = self._levels.get(key_id, (full, now_ms))
        return min(full, level + (now_ms - at_ms) * self.per_minute)

    def _forget(self, now_ms: int) -> None:
        most = self.per_minute * TICKS
        full = [key for key in self._levels if self._level(key, now_ms) >= most]
        for key_id in full:
            del self._levels[key_id]
