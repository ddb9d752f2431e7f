"""What one attempt says of its endpoint: healthy, busy, failing, or ours to put right.

The breaker's rules are ``routing.breaker``'s; here an attempt's outcome is put into its words. Not
here: where the next attempt goes (``routing.decide``), what the client is told (``inference``).
"""

import logging
from collections.abc import Callable

from gateway.call import Call
from gateway.engines import Engines
from gateway.exchange import Exchange
from gateway.snapshot import ModelDoc
from gateway.telemetry.counters import Counters, labels_of
from gateway.wire.relay import Ended, Failed
from routing.breaker import on_busy, on_failure, on_success
from routing.topology import Endpoint

ALARM_EVERY_S = 60.0
log = logging.getLogger("gateway.health")


class Health:
    """One per data process. ``monotonic`` in seconds."""

    def __init__(
        self, engines: Engines, counters: Counters, monotonic: Callable[[], float]
    ) -> None:
        self._engines = engines
        self._counters = counters
        self._attempts = counters.counters["tf_attempts_total"]  # by one label: how they ended
        self._monotonic = monotonic
        self._alarmed_s: dict[int, float] = {}

    def judge(self, exchange: Exchange, endpoint: Endpoint, outcome: Failed | Ended) -> None:
        """Count the attempt, and move its endpoint's breaker."""
        load = self._engines.loads.get(endpoint.id)
        if isinstance(outcome, Ended):
            ending = outcome.ending
            self._attempts[ending] += 1
            if load is None:
                return
            if ending in ("engine_error", "timeout"):
                on_failure(load, self._monotonic())
            elif exchange.first_event_s >= 0:  # one that was left before it answered says nothing
                on_success(load)
            return
        self._attempts[outcome.kind] += 1
        if load is None:
            return
        now_s = self._monotonic()
        if outcome.kind == "engine_busy":
            on_busy(load, now_s, outcome.retry_after_s)
        elif outcome.kind == "misconfigured":
            # Our name or credential there is wrong; its other models may be well.
            self._alarm(exchange.model, endpoint, outcome.status)
        elif outcome.kind == "engine_4xx":
            on_success(load)
        else:
            on_failure(load, now_s)

    def teaches(self, call: Call, endpoint: Endpoint, outcome: Failed) -> bool:
        """Whether the same endpoint may be asked again at no cost to the retry budget."""
        if outcome.reused:
            return True
        envelope = call.envelope
        if envelope is None or not envelope.stream or outcome.status != 400:  # noqa: PLR2004
            return False
        if b"stream_options" not in outcome.body and b"continuous_usage" not in outcome.body:
            return False
        engine = self._engines.get(endpoint)
        mode = engine.usage_mode(self._engines.signals.get(endpoint.id))
        engine.refuse_usage(mode)
        return mode != "none"

    def _alarm(self, model: ModelDoc, endpoint: Endpoint, status: int) -> None:
        """Count every time, and tell the operator once a minute an endpoint."""
        self._counters.add("tf_upstream_misconfigured_total", labels_of(model.name))
        now_s = self._monotonic()
        if now_s - self._alarmed_s.get(endpoint.id, -ALARM_EVERY_S) >= ALARM_EVERY_S:
            self._alarmed_s[endpoint.id] = now_s
            self._engines.renew(endpoint)
            log.error(
                "endpoint %s answers %d to us: check its api_key, its url and the model's upstream"
                " name (%s)",
                endpoint.url, status, model.name,
            )  # fmt: skip
