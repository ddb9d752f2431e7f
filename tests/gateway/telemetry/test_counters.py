"""Counters, gauges, histograms: what a process counts."""

from gateway.telemetry.counters import BUCKETS_S, Counters, labels_of


def test_counter_adds_per_label():
    counters = Counters()
    counters.add("tf_requests_total", labels_of("ok", "m"))
    counters.add("tf_requests_total", labels_of("ok", "m"), 2)

    assert counters.counters == {"tf_requests_total": {"ok\x1fm": 3}}


def test_histogram_counts_value_in_the_first_bucket_that_holds_it():
    counters = Counters()
    counters.histogram("tf_ttft_seconds", "m").observe(BUCKETS_S[2])

    [*counts, total] = counters.observed()["tf_ttft_seconds"]["m"]

    assert counts[2] == 1
    assert sum(counts) == 1
    assert total == BUCKETS_S[2]


def test_histogram_keeps_what_is_above_every_bound():
    counters = Counters()
    counters.histogram("tf_ttft_seconds").observe(10_000)

    assert counters.observed()["tf_ttft_seconds"][""][len(BUCKETS_S)] == 1


def test_gauge_holds_the_last_value():
    counters = Counters()
    counters.set("tf_reservations_open", 3)
    counters.set("tf_reservations_open", 1)

    assert counters.gauges == {"tf_reservations_open": {"": 1}}
