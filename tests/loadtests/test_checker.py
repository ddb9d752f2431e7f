"""The checker of loadtests/faults.py finds what is seeded, and nothing where nothing is wrong."""

import msgspec
import pytest

from loadtests.checker import Noted, Verdict, Witnessed, check

ONE, TWO = "http://one", "http://two"


def seen(number, *, endpoint=ONE, tokens=8, ended="finished", **fields):
    made = Witnessed(
        number=number, request_id=f"r{number}", endpoint=endpoint, prompts=1, choices=1,
        prompt_tokens=5, tokens=tokens, ended=ended,
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def note(number, **fields):
    known = {"request_id": f"r{number}", "kind": "stream", "status": 200}
    return Noted(number=number, **(known | fields))


def row(number, prompt, completion, outcome, source, **fields):
    made = {
        "request_id": f"r{number}", "endpoint": ONE, "attempts": 1, "choices": 1,
        "prompt_tokens": prompt, "completion_tokens": completion, "outcome": outcome,
        "source": source,
    }  # fmt: skip
    return made | fields


@pytest.fixture
def history():
    """One request of every kind, all in order: (witnessed, noted, records)."""
    witnessed = [
        seen(1),
        seen(2, tokens=6, ended="aborted"),
        seen(3, tokens=0, ended="refused"),
        seen(3, endpoint=TWO),
        seen(4, tokens=9, ended="aborted"),
        seen(5, tokens=0, ended="refused", prompt_tokens=0),
        seen(6, prompts=2, choices=2, tokens=7, ended="aborted"),
        seen(7, tokens=5, ended="aborted"),
        seen(9, tokens=8),
    ]
    noted = [
        note(1, received=8, whole=True, told=(5, 8)),
        note(2, received=4),
        note(3, received=8, whole=True),
        note(4, request_id="", status=0),
        note(5, status=400),
        note(6, received=3),
        note(7, request_id="", status=0),
        note(8, request_id="", status=0),
        note(9, received=8, whole=True),
    ]
    records = [
        row(1, 5, 8, "ok", "engine_final"),
        row(2, 5, 5, "client_abort", "engine_partial"),
        row(3, 5, 8, "ok", "engine_final", endpoint=TWO, attempts=2),
        row(4, 5, 9, "gateway_crash", "engine_partial"),
        row(5, 0, 0, "refused_by_engine", "none"),
        row(6, 3, 4, "client_abort", "engine_partial", choices=2),
        row(7, 4, 0, "client_abort", "estimated"),
        row(8, 0, 0, "gateway_crash", "none"),
        row(9, 5, 8, "gateway_crash", "engine_partial"),  # killed after the answer went out
    ]
    return witnessed, noted, records


def faults(verdict: Verdict) -> tuple[int, int, int, int]:
    return tuple(map(len, (verdict.lost, verdict.doubled, verdict.altered, verdict.invented)))


def test_a_true_ledger_has_no_fault(history):
    verdict = check(*history)

    assert verdict.faults == []
    assert (verdict.seen, verdict.attempts) == (8, 9)
    assert (verdict.exact, verdict.between, verdict.unseen) == (3, 5, 1)


@pytest.mark.parametrize("gone", range(8))
def test_any_lost_record_of_a_request_that_an_engine_saw_is_found(history, gone):
    witnessed, noted, records = history
    del records[gone if gone < 7 else 8]
    verdict = check(witnessed, noted, records)

    assert len(verdict.lost) >= 1
    assert verdict.doubled == verdict.altered == verdict.invented == []


@pytest.mark.parametrize("twice", range(9))
def test_any_doubled_record_is_found(history, twice):
    witnessed, noted, records = history
    verdict = check(witnessed, noted, [*records, dict(records[twice])])

    assert faults(verdict) == (0, 1, 0, 0)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("number", [1, 3, 9])
def test_a_whole_answers_record_altered_by_one_token_is_found(history, number, field, by):
    witnessed, noted, records = history
    records[number - 1][field] += by

    assert faults(check(witnessed, noted, records)) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (2, {"completion_tokens": 3}),  # fewer than the client got
        (2, {"completion_tokens": 7}),  # more than the engine made
        (2, {"prompt_tokens": 4}),
        (2, {"outcome": "ok"}),
        (2, {"choices": 3}),
        (3, {"endpoint": ONE}),
        (3, {"attempts": 1}),
        (4, {"completion_tokens": 10}),
        (5, {"prompt_tokens": 1}),
        (6, {"prompt_tokens": 6}),
        (7, {"completion_tokens": 6}),
        (9, {"completion_tokens": 7}),
    ],
)
def test_an_altered_record_is_found(history, number, change):
    witnessed, noted, records = history
    records[number - 1] |= change

    assert faults(check(witnessed, noted, records)) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    "change",
    [{"completion_tokens": 1}, {"source": "engine_partial"}, {"outcome": "ok"}],
)
def test_a_record_of_what_no_engine_saw_bills_no_completion(history, change):
    witnessed, noted, records = history
    records[7] |= change

    assert faults(check(witnessed, noted, records)) == (0, 0, 0, 1)


def test_a_prompt_that_only_another_engine_counted_is_no_fault(history):
    witnessed, noted, records = history
    witnessed.append(seen(10, tokens=0, ended="refused", prompt_tokens=0))
    noted.append(note(10, request_id="", status=0))
    records.append(row(10, 7, 0, "client_abort", "tokenized"))

    assert check(witnessed, noted, records).faults == []


def test_a_record_of_nobody_is_found(history):
    witnessed, noted, records = history
    records.append(row(99, 5, 8, "ok", "engine_final"))

    assert faults(check(witnessed, noted, records)) == (0, 0, 0, 1)


def test_answers_and_records_that_were_swapped_are_found(history):
    witnessed, noted, records = history
    noted[0].request_id, noted[8].request_id = "r9", "r1"

    assert faults(check(witnessed, noted, records)) == (0, 0, 2, 0)
