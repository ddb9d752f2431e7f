"""How often a key may have an engine work for nothing: a bucket of endings that billed nothing.

Such endings are free work otherwise: an answer cut before its first token, a refusal, an engine that
fails over one kind of body. An ending takes one from the key's bucket after the fact, so the level
may fall below zero, by what was in flight. Kept by each data process for itself: N of them allow N
times as many. Not here: rate limits, which are reserved, shared and exact (``quotas.store``).
"""

_MS_A_MINUTE = 60_000
#: Keys remembered before those with full buckets are forgotten.
KEYS_MAX = 10_000


class UnbilledEndings:
    """Mutable; ``per_minute`` endings flow back a minute, and as many are had at once. 0 = no limit.

    Times are seconds of one monotonic clock.
    """

    __slots__ = ("_levels", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._levels: dict[int, tuple[float, float]] = {}  # key id -> level, at

    def note(self, key_id: int, now_s: float) -> None:
        """One request of the key ended and billed nothing."""
        if not self.per_minute:
            return
        if key_id not in self._levels and len(self._levels) >= KEYS_MAX:
            self._forget(now_s)
        self._levels[key_id] = (self._level(key_id, now_s) - 1, now_s)

    def wait_ms(self, key_id: int, now_s: float) -> int:
        """0: the key may go on; else when it may. A key that was never noted costs one look-up."""
        if key_id not in self._levels:
            return 0
        lacking = 1 - self._level(key_id, now_s)
        return 0 if lacking <= 0 else max(1, round(lacking * _MS_A_MINUTE / self.per_minute))

    def _level(self, key_id: int, now_s: float) -> float:
        level, at_s = self._levels.get(key_id, (float(self.per_minute), now_s))
        return min(self.per_minute, level + (now_s - at_s) * self.per_minute / 60)

    def _forget(self, now_s: float) -> None:
        full = [key for key in self._levels if self._level(key, now_s) >= self.per_minute]
        for key_id in full:
            del self._levels[key_id]
