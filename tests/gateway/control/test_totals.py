"""Sums over data processes never fall: not by a restart of one, nor of control."""

from pathlib import Path

from gateway.control.totals import Totals
from gateway.link.messages import Counters


def message(slot: int, pid: int, count: float, open_now: float = 0) -> Counters:
    return Counters(
        slot,
        pid,
        {"tf_requests_total": {"ok": count}},
        {"tf_reservations_open": {"": open_now}, "tf_snapshot_version": {"": pid}},
        {"tf_ttft_seconds": {"m": [count, 0, 0.5]}},
    )


def requests(totals: Totals) -> float:
    return totals.sums().counters["tf_requests_total"]["ok"]


def test_processes_are_summed_and_the_newest_values_replace(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "counters", 1)
    for values in (message(0, 10, 5, 2), message(1, 11, 1, 3), message(0, 10, 6, 1)):
        totals.take(values)
    assert requests(totals) == 7
    sums = totals.sums()
    assert sums.gauges["tf_reservations_open"][""] == 4
    assert sums.gauges["tf_snapshot_version"][""] == 10
    assert sums.histograms["tf_ttft_seconds"]["m"] == [7, 0, 1.0]


def test_a_restarted_process_adds_to_what_the_dead_one_counted(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "counters", 1)
    totals.take(message(0, 10, 5, 2))
    totals.leave(0, 10)
    assert requests(totals) == 5
    assert "tf_reservations_open" not in totals.sums().gauges
    totals.take(message(0, 12, 1, 1))
    totals.take(message(0, 12, 2, 1))
    assert requests(totals) == 7
    assert requests(totals) == 7  # asking changes nothing


def test_the_base_outlives_control_but_not_the_host(tmp_path: Path) -> None:
    first = Totals(tmp_path / "counters", 1)
    first.take(message(0, 10, 5))
    first.take(message(0, 12, 1))
    again = Totals(tmp_path / "counters", 1)
    again.take(message(0, 12, 1))
    assert requests(again) == 6
    assert Totals(tmp_path / "counters", 2).sums().counters == {}


def test_a_process_that_lost_its_link_is_not_counted_twice(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "counters", 1)
    totals.take(message(0, 10, 5))
    totals.leave(0, 10)
    totals.take(message(0, 10, 6))
    assert requests(totals) == 6
