"""What may be tried again at another endpoint, how often, and the budget that stops a storm.

The budget is Finagle's and Envoy's: retries are a share of requests, so that an outage is not
multiplied by three. Not here: where the next attempt goes (``routing.decide`` excludes the tried).
"""

from typing import Literal

FailureKind = Literal[
    "connect",
    "connect_timeout",
    "cut_before_head",
    "first_event_timeout",
    "engine_5xx",
    "engine_busy",
    "engine_4xx",
    "misconfigured",
]

#: May another endpoint do better? Only a refusal of the request itself is the same everywhere.
RETRIABLE: dict[FailureKind, bool] = {
    "connect": True,
    "connect_timeout": True,
    "cut_before_head": True,
    "first_event_timeout": True,
    "engine_5xx": True,
    "engine_busy": True,  # 429 or 503: a sibling may have room
    "engine_4xx": False,
    "misconfigured": True,  # 401, 403, 404 for us: this endpoint's own settings
}
ATTEMPTS_MAX = 3


def may_retry(
    kind: FailureKind, *, committed: bool, attempts_made: int, max_attempts: int = ATTEMPTS_MAX
) -> bool:
    """True when the request may go to another endpoint. Never after the first byte of an answer:
    ``committed``. ``attempts_made`` counts the failed one.
    """
    return not committed and attempts_made < max_attempts and RETRIABLE[kind]


class RetryBudget:
    """Mutable, one per pool. Retries allowed in a window: ``ratio`` of its requests, or
    ``min_per_window``, whichever is more.

    The window slides by weighing the one before: count = now's + before's x the share of it that
    the last ``window_s`` still cover. Times are the caller's monotonic seconds.
    """

    __slots__ = (
        "_before",
        "_began_s",
        "_min_per_window",
        "_ratio",
        "_requests",
        "_retries",
        "_window_s",
    )

    def __init__(self, ratio: float = 0.1, min_per_window: int = 3, window_s: float = 10.0) -> None:
        self._ratio = ratio
        self._min_per_window = min_per_window
        self._window_s = window_s
        self._began_s = float("-inf")
        self._requests = 0
        self._retries = 0
        self._before = (0, 0)  # requests, retries

    def note_request(self, now_s: float) -> None:
        """A request arrived; its first attempt is free."""
        self._slide(now_s)
        self._requests += 1

    def allow(self, now_s: float) -> bool:
        """True when one more retry is within the budget; it is then spent."""
        self._slide(now_s)
        covered = max(0.0, 1.0 - (now_s - self._began_s) / self._window_s)
        requests = self._requests + self._before[0] * covered
        retries = self._retries + self._before[1] * covered
        if retries + 1 > max(self._min_per_window, self._ratio * requests):
            return False
        self._retries += 1
        return True

    def _slide(self, now_s: float) -> None:
        age_s = now_s - self._began_s
        if age_s < self._window_s:
            return
        adjacent = age_s < 2 * self._window_s
        self._before = (self._requests, self._retries) if adjacent else (0, 0)
        self._began_s = self._began_s + self._window_s if adjacent else now_s
        self._requests = self._retries = 0
