"""What routing raises. Facts only; the gateway's table turns them into answers."""

from collections.abc import Mapping


class RoutingError(Exception):
    """Base of this package's errors."""


class NoEndpoint(RoutingError):
    """No endpoint may serve this request now: our capacity, not the caller's limit.

    ``retry_after_s``: whole seconds, 1..60, until the first of them is expected back.
    ``reasons``: endpoint id -> why it is out (``routing.filters.Reason``); empty: the pool is empty.
    """

    def __init__(self, retry_after_s: int, reasons: Mapping[int, str]) -> None:
        super().__init__(f"no endpoint; retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s
        self.reasons = reasons
