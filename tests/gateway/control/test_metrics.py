"""The metrics page renders whatever data processes send, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from gateway.control.metrics import render
from gateway.control.totals import Sums
from gateway.telemetry.counters import BUCKETS_S, Counters, labels_of


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_counters_gauges_and_histograms_come_out_with_their_labels() -> None:
    counters = Counters()
    counters.add("tf_tokens_total", labels_of("llama", "prompt"), 12)
    counters.set("tf_reservations_open", 3)
    counters.histogram("tf_ttft_seconds", "llama").observe(0.0015)
    counters.histogram("tf_ttft_seconds", "llama").observe(1e6)
    sums = Sums(counters=counters.counters, gauges=counters.gauges, histograms=counters.observed())
    seen = samples(render(sums, {"tf_ledger_lag_seconds": 0.5}))
    assert seen["tf_tokens_total", (("kind", "prompt"), ("model", "llama"))] == 12
    assert seen["tf_reservations_open", ()] == 3
    assert seen["tf_ledger_lag_seconds", ()] == 0.5
    bucket = ("tf_ttft_seconds_bucket", (("le", repr(BUCKETS_S[1])), ("model", "llama")))
    assert seen[bucket] == 1
    assert seen["tf_ttft_seconds_count", (("model", "llama"),)] == 2
    assert seen["tf_ttft_seconds_sum", (("model", "llama"),)] == 1e6 + 0.0015


def test_a_metric_this_version_does_not_know_is_rendered_all_the_same() -> None:
    sums = Sums(counters={"tf_new_total": {labels_of("a", "b"): 1}})
    assert samples(render(sums, {})) == {("tf_new_total", (("label_1", "a"), ("label_2", "b"))): 1}


def test_an_empty_label_value_is_one() -> None:
    sums = Sums(counters={"tf_attempts_total": {"": 2}})
    assert samples(render(sums, {})) == {("tf_attempts_total", (("result", ""),)): 2}
