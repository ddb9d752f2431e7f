"""A short form of loadtests/fuzz.py, and what it would find."""

import re

import pytest

from gateway.contract.envelope import parse
from loadtests import fuzz

#: What a careless pattern would be: it looks for a length and at nothing else.
ANY_HEAD = rb"HTTP/1\.1 200[^\0]*?content-length: ([0-9]+)\r\n()()([^\0]*)\r\n"


def test_nothing_is_found_in_a_short_run():
    results = fuzz.run(30_000, seed=3)

    names = ("heads", "chunks", "proxy", "guard", "pieces", "spans", "events", "everyday", "steady", "answers")  # fmt: skip
    assert set(results) == set(names)
    assert all(each["executions"] == 3000 for each in results.values())


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        ("guard", "edit", lambda body, *_, **__: body),
        ("events", "FrameSplitter", None),
        ("pieces", "check_syntax", lambda _: iter(())),
        ("chunks", "_chunks", len),
        ("heads", "_llhttp_agrees", lambda _: False),
        ("everyday", "parse", lambda body, operation: parse(body.replace(b"m", b"x"), operation)),
        ("steady", "cut", lambda frame: frame),
        ("steady", "error_in", lambda frame: b"x" if frame.find(b" b") > 0 else None),
        ("answers", "PLAIN_HEAD", re.compile(ANY_HEAD)),
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
