"""What is known about an endpoint at a moment: probed, scraped, and counted here.

``EndpointSignals`` comes from the control process (probe and scrape). ``EndpointLoad`` is this
process's own ledger: exact and without lag. Times are seconds of the caller's monotonic clock.
"""

import msgspec

from routing.topology import UsageMode


class EndpointSignals(msgspec.Struct, frozen=True, kw_only=True):
    """From outside. ``healthy``: None = never probed. Counts are None when the engine tells none.

    ``usage``: what the probe found the endpoint to report in streams (never "auto").
    ``max_model_len``: model name at the engine -> tokens. ``template_tokens``: the same -> what its
    template adds to a prompt beyond the prompt's bytes, at most.
    """

    endpoint_id: int
    healthy: bool | None = None
    waiting: float | None = None
    running: float | None = None
    kv_used_fraction: float | None = None
    usage: UsageMode | None = None
    max_model_len: dict[str, int] = msgspec.field(default_factory=dict)
    template_tokens: dict[str, int] = msgspec.field(default_factory=dict)


class EndpointLoad:
    """Mutable: requests in flight from here, back-off, and the breaker's memory."""

    __slots__ = (
        "back_off_until_s",
        "consecutive_failures",
        "ejected_until_s",
        "ejections",
        "in_flight",
        "trial_until_s",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.back_off_until_s = 0.0  # the engine said 429 or 503: busy, not ill
        self.consecutive_failures = 0
        self.ejections = 0
        self.ejected_until_s = 0.0
        self.trial_until_s = 0.0  # back from an ejection: one request goes first

    def is_out(self, now_s: float) -> bool:
        """Ejected, or back on probation with its one trial under way."""
        return self.ejected_until_s > now_s or self.trial_until_s > now_s
