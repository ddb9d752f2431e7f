"""The short form of loadtests/faults.py: one of each quick fault, a few hundred requests."""

import asyncio

import pytest

from loadtests.faults import run
from loadtests.findings import SHORT


@pytest.mark.timeout(180)
def test_no_record_is_lost_doubled_or_altered_whatever_is_killed(tmp_path):
    report = asyncio.run(run(SHORT, tmp_path))

    assert report.wrong == []
    assert sum(times for times, _ in report.faults.values()) == 9
    assert report.failovers
    assert report.several_choices
    assert {"ok", "client_abort", "engine_error", "gateway_crash"} <= report.outcomes.keys()
    assert report.verdict.exact > 100
    assert report.limits_asked == 2
    assert all(nano > 0 for nano in report.sold.values())
    assert report.postings > 4 * report.verdict.exact
    assert (report.statements, report.top_ups > 2) == (4, True)
    assert "**lost** | 0" in report.table()
