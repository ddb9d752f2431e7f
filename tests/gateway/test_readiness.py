"""New requests are served from a snapshot that is there and fresh enough, by a process that stays."""

from gateway.readiness import Readiness


def test_one_that_has_a_fresh_snapshot_serves():
    assert Readiness(60.0).reason(version=3, age_s=60.0) == ""


def test_each_reason_has_its_words():
    readiness = Readiness(60.0)
    assert readiness.reason(version=0, age_s=1.0) == "no snapshot yet"
    assert readiness.reason(version=3, age_s=75.4) == "the snapshot is 75 s old"
    readiness.draining = True
    assert readiness.reason(version=0, age_s=75.4) == "draining"


def test_the_report_says_what_it_knows():
    report = Readiness(60.0).report(version=3, age_s=1.23456, control=False, store="memory")
    assert report == {
        "ready": True, "reason": "", "snapshot_version": 3, "snapshot_age_s": 1.235,
        "control": "away", "store": "memory",
    }  # fmt: skip
    assert not Readiness(1.0).report(version=3, age_s=2.0, control=True, store="memory")["ready"]
