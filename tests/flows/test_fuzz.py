"""A short form of loadtests/fuzz.py, and what it would find."""

import pytest

from loadtests import fuzz


def test_nothing_is_found_in_a_short_run():
    results = fuzz.run(21_000, seed=3)

    assert set(results) == {"heads", "chunks", "proxy", "guard", "pieces", "spans", "events"}
    assert all(each["executions"] == 3000 for each in results.values())


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        ("guard", "edit", lambda body, *_, **__: body),
        ("events", "FrameSplitter", None),
        ("pieces", "check_syntax", lambda _: iter(())),
        ("chunks", "_chunks", len),
        ("heads", "_llhttp_agrees", lambda _: False),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, target, name, broken):
    class Loses(fuzz.FrameSplitter):
        def feed(self, data):
            return [frame for frame in super().feed(data) if frame[:1] != b":"]

    monkeypatch.setattr(fuzz, name, broken or Loses)
    with pytest.raises(fuzz.Found):
        fuzz.run(20_000, seed=1, only=target)


def test_an_exception_that_is_not_declared_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "read_proxy", lambda data: data[4])
    with pytest.raises(fuzz.Found):
        fuzz.run(5_000, seed=1, only="proxy")


def test_quadratic_time_is_found():
    def quadratic(data, _):
        rest = data
        while rest:
            rest = rest[64:]
            sum(rest[::8])

    with pytest.raises(fuzz.Found):
        fuzz.check_growth("quadratic", quadratic, b"x" * 100)
