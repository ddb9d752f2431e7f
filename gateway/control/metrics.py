"""``/metrics``: the host's sums in Prometheus' text format.

Names, help and label names are ``gateway.telemetry.counters``'; whatever a data process sends is
rendered, also a metric this version does not know. Not here: the sums (``gateway.control.totals``).
"""

from collections.abc import Iterable, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.control.totals import Sums
from gateway.telemetry.counters import BUCKETS_S, HELP, LABELS, SEPARATOR

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(sums: Sums, own: Mapping[str, float]) -> bytes:
    """The page; ``own`` are gauges of the control process, without labels."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_families(sums), *_own(own)]))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(sums: Sums) -> Iterable[Metric]:
    for name, series in sorted(sums.counters.items()):
        names = _names(name, series)
        counter = CounterMetricFamily(name, HELP.get(name, name), labels=names)
        for labels, value in sorted(series.items()):
            counter.add_metric(_values(labels, names), value)
        yield counter
    for name, series in sorted(sums.gauges.items()):
        names = _names(name, series)
        gauge = GaugeMetricFamily(name, HELP.get(name, name), labels=names)
        for labels, value in sorted(series.items()):
            gauge.add_metric(_values(labels, names), value)
        yield gauge
    for name, observed in sorted(sums.histograms.items()):
        names = _names(name, observed)
        histogram = HistogramMetricFamily(name, HELP.get(name, name), labels=names)
        for labels, values in sorted(observed.items()):
            histogram.add_metric(_values(labels, names), _buckets(values[:-1]), values[-1])
        yield histogram


def _own(own: Mapping[str, float]) -> Iterable[Metric]:
    for name, value in sorted(own.items()):
        yield GaugeMetricFamily(name, HELP.get(name, name), value=value)


def _values(labels: str, names: tuple[str, ...]) -> list[str]:
    return labels.split(SEPARATOR) if names else []


def _names(name: str, series: Iterable[str]) -> tuple[str, ...]:
    """The label names, as many as the series has values."""
    known = LABELS.get(name, ())
    count = max((labels.count(SEPARATOR) + 1 for labels in series if labels), default=len(known))
    return known[:count] + tuple(f"label_{n}" for n in range(len(known) + 1, count + 1))


def _buckets(counts: list[float]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them; the last is +Inf."""
    total = 0.0
    buckets = []
    for bound, count in zip((*BUCKETS_S, None), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound is None else repr(float(bound)), total))
    return buckets
