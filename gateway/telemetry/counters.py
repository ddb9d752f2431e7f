"""Counters, gauges and histograms of one process: plain dicts, absolute values, sent to control.

The control process sums them over data processes and renders them for Prometheus; a library's
``labels().observe()`` would cost more than the rest of a chunk. Labels are bounded: model names,
endpoints and fixed words, never a key, a tenant or a path. This file is the list of every metric name.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

#: Upper bounds in seconds. 0.001 x 1.8^i spans 1 ms to 130 s, as TTFT and chunk gaps do.
BUCKETS_S = tuple(round(0.001 * 1.8**i, 6) for i in range(21))

HELP = {
    "tf_requests_total": "Requests by outcome and model.",
    "tf_responses_total": "Answers by HTTP status.",
    "tf_tokens_total": "Tokens counted, by model and kind.",
    "tf_ttft_seconds": "Time from the request's first byte to the first event of the answer.",
    "tf_inter_chunk_gap_seconds": "Time between two chunks of a stream.",
    "tf_reservations_open": "Reservations held by this process now.",
    "tf_refusals_total": "Requests refused by a limit, by scope and dimension.",
    "tf_recounts_total": "Counts asked of /tokenize because an engine gave none, by result.",
    "tf_unbilled_ms_total": "Engine time of endings that billed nothing, by model.",
    "tf_shadow_refusals_total": "Requests that a shadow limit would have refused, by scope and dimension.",
    "tf_lease_draws_total": "Requests under limits that all tenants share, by how their units were had.",
    "tf_lease_units": "Units of limits that all tenants share held here unspent, by scope and dimension.",
    "tf_offline_credit_micro": "The most of one credit spent without the store and not yet seen by it, in micro-units.",
    "tf_processes_known": "Data processes that share the store, as last known.",
    "tf_settle_lag_seconds": "Age of the oldest settlement not yet acknowledged.",
    "tf_journal_bytes": "Bytes in the journals of this host not yet freed.",
    "tf_attempts_total": "Forwards to engines by how they ended.",
    "tf_connections_open": "Client connections open now.",
    "tf_upstream_misconfigured_total": "Attempts that an engine refused for our credential, path or model name.",
    "tf_internal_errors_total": "Errors that are our own fault.",
    "tf_head_refusals_total": "Requests refused before any handler saw them, by reason.",
    "tf_snapshot_version": "Version of the snapshot held.",
    "tf_reconcile_difference_tokens": "Tokens an engine counted that no record explains; 0 is well.",
    "tf_reconcile_room_tokens": "Tokens within which answers cut short leave an engine's counters.",
    "tf_reconcile_timestamp_seconds": "Until when an engine's counters were last reconciled.",
}
LABELS = {
    "tf_requests_total": ("outcome", "model"),
    "tf_responses_total": ("status",),
    "tf_tokens_total": ("model", "kind"),
    "tf_ttft_seconds": ("model",),
    "tf_inter_chunk_gap_seconds": (),
    "tf_refusals_total": ("scope", "dimension"),
    "tf_shadow_refusals_total": ("scope", "dimension"),
    "tf_attempts_total": ("result",),
    "tf_lease_draws_total": ("result",),
    "tf_lease_units": ("scope", "dimension"),
    "tf_upstream_misconfigured_total": ("model",),
    "tf_recounts_total": ("result",),
    "tf_unbilled_ms_total": ("model",),
    "tf_head_refusals_total": ("reason",),
    "tf_reconcile_difference_tokens": ("endpoint", "kind"),
    "tf_reconcile_room_tokens": ("endpoint", "kind"),
    "tf_reconcile_timestamp_seconds": ("endpoint",),
}
#: Label values of one series travel as one string; no label value may hold this character.
SEPARATOR = "\x1f"


class Histogram:
    """Counts per bucket (the last is everything above), and the sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, value_s)] += 1
        self.sum_s += value_s


def _series() -> dict[str, float]:
    return defaultdict(int)


def _histograms() -> dict[str, Histogram]:
    return defaultdict(Histogram)


class Counters:
    """Absolute values since the process began. Not shared between threads."""

    def __init__(self) -> None:
        self.counters: dict[str, dict[str, float]] = defaultdict(_series)
        self.gauges: dict[str, dict[str, float]] = {}
        self.histograms: dict[str, dict[str, Histogram]] = defaultdict(_histograms)

    def add(self, name: str, labels: str = "", amount: float = 1) -> None:
        self.counters[name][labels] += amount

    def set(self, name: str, value: float, labels: str = "") -> None:
        self.gauges.setdefault(name, {})[labels] = value

    def histogram(self, name: str, labels: str = "") -> Histogram:
        """The series itself, to keep where it is observed often."""
        return self.histograms[name][labels]

    def observed(self) -> dict[str, dict[str, list[float]]]:
        """Histograms as the link carries them: counts per bucket, then the sum."""
        return {
            name: {labels: [*h.counts, h.sum_s] for labels, h in series.items()}
            for name, series in self.histograms.items()
        }


class ModelSeries:
    """What every request of one model adds to: its series, found once."""

    __slots__ = (
        "_cached",
        "_completion",
        "_model",
        "_outcomes",
        "_prompt",
        "_reasoning",
        "_tokens",
        "_ttft",
    )
    #: As usage records name them.
    KINDS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")

    def __init__(self, counters: Counters, model: str) -> None:
        self._model = model
        self._outcomes = counters.counters["tf_requests_total"]
        self._tokens = counters.counters["tf_tokens_total"]
        self._prompt, self._completion, self._cached, self._reasoning = [
            labels_of(model, kind) for kind in self.KINDS
        ]
        self._ttft = counters.histogram("tf_ttft_seconds", model)

    def count(self, outcome: str, usage: Mapping[str, int], ttft_ms: int) -> None:
        """One ended request. ``usage``: tokens by kind; ``ttft_ms`` below 0: no event ever came."""
        self._outcomes[labels_of(outcome, self._model)] += 1
        total = self._tokens
        total[self._prompt] += usage["prompt_tokens"]
        total[self._completion] += usage["completion_tokens"]
        if usage["cached_tokens"]:
            total[self._cached] += usage["cached_tokens"]
        if usage["reasoning_tokens"]:
            total[self._reasoning] += usage["reasoning_tokens"]
        if ttft_ms >= 0:
            self._ttft.observe(ttft_ms / 1000)


@lru_cache(maxsize=4096)
def labels_of(*values: str) -> str:
    """The label values of one series, in the order of ``LABELS``."""
    return SEPARATOR.join(values)
