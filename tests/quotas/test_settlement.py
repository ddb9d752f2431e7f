"""The table of endings, a case a row, and that no ending is left out."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.record import AttemptEntry, UsageRecord
from quotas.settlement import (
    TABLE,
    Bill,
    Case,
    Ending,
    Seen,
    Settled,
    _case,
    _seen,
    finished,
    settle,
    unbilled_ms,
)
from quotas.usage import TokenUsage

#: Nothing was counted by the engine; what we could find out ourselves.
OURS = {"tokenized": 90, "estimate": 120, "tokenized_completion": 9, "completion_estimate": 12}
ESTIMATES = {"estimate": 120, "completion_estimate": 12}
COUNTED = {"prompt": 100, "completion": 20}

ROWS = [
    # ending, what we know beside it, prompt, completion, source, outcome
    ("finished, final frame", Ending(cause="ok", final=True, delivered=True, **COUNTED), {},
     100, 20, "engine_final", "ok"),
    ("finished, final frame of an embedding", Ending(cause="ok", final=True, prompt=100), {},
     100, 0, "engine_final", "ok"),
    ("finished, per chunk", Ending(cause="ok", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "ok"),
    ("finished, no count", Ending(cause="ok", delivered=True), OURS, 90, 9, "tokenized", "ok"),
    ("finished, no count, prompt tokenized", Ending(cause="ok", delivered=True),
     {"tokenized": 90, "completion_estimate": 12}, 90, 12, "estimated", "ok"),
    ("finished, no count, nothing tokenized", Ending(cause="ok", delivered=True), ESTIMATES,
     120, 12, "estimated", "ok"),
    ("client left, per chunk", Ending(cause="client_abort", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "client_abort"),
    ("client left, final frame", Ending(cause="client_abort", final=True, delivered=True, **COUNTED),
     OURS, 100, 20, "engine_final", "client_abort"),
    ("client left before the first frame", Ending(cause="client_abort"), OURS,
     90, 0, "tokenized", "client_abort"),
    ("client left a unary call", Ending(cause="client_abort"), ESTIMATES,
     120, 0, "estimated", "client_abort"),
    ("drain after tokens", Ending(cause="shutdown", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "shutdown"),
    ("drain before tokens", Ending(cause="shutdown"), OURS, 90, 0, "tokenized", "shutdown"),
    ("revoked after tokens", Ending(cause="key_revoked", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "key_revoked"),
    ("revoked before tokens", Ending(cause="key_revoked"), ESTIMATES,
     120, 0, "estimated", "key_revoked"),
    ("engine error after tokens", Ending(cause="engine_error", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "engine_error"),
    ("timeout after tokens", Ending(cause="timeout", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "timeout"),
    ("engine error before tokens", Ending(cause="engine_error", **COUNTED), OURS,
     0, 0, "none", "engine_error"),
    ("timeout before tokens", Ending(cause="timeout"), OURS, 0, 0, "none", "timeout"),
    ("finished with nothing and an error",
     Ending(cause="ok", final=True, prompt=100, completion=0, void_finish=True), OURS,
     0, 0, "engine_final", "engine_error"),
    ("finished with something and an error",
     Ending(cause="ok", final=True, delivered=True, void_finish=True, **COUNTED), OURS,
     100, 20, "engine_final", "ok"),
    ("gateway killed before tokens", Ending(cause="gateway_crash", prompt=100, completion=0), OURS,
     0, 0, "none", "gateway_crash"),
    ("gateway killed after tokens", Ending(cause="gateway_crash", delivered=True, **COUNTED), OURS,
     100, 20, "engine_partial", "gateway_crash"),
    ("engine refused", Ending(cause="refused_by_engine"), OURS, 0, 0, "none", "refused_by_engine"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "known", "prompt", "completion", "source", "outcome"),
    [pytest.param(*row[1:], id=row[0]) for row in ROWS],
)
def test_ending_bills_what_its_row_says(ending, known, prompt, completion, source, outcome):
    settled = settle(ending, **known)

    assert (settled.usage.prompt, settled.usage.completion) == (prompt, completion)
    assert (settled.source, settled.outcome) == (source, outcome)


@given(
    st.builds(
        Ending,
        cause=st.sampled_from(("ok", "client_abort", "engine_error", "refused_by_engine")),
        prompt=st.none() | st.integers(0, 2),
        completion=st.none() | st.integers(0, 2),
        cached=st.integers(0, 2),
        final=st.booleans(),
        delivered=st.booleans(),
        void_finish=st.booleans(),
    )
)
def test_quick_way_of_most_endings_bills_what_the_table_says(ending):
    settled, bill = settle(ending, **OURS), TABLE[_case(ending), _seen(ending)]

    counts = (ending.prompt or 0, ending.cached, ending.completion or 0)
    said = (settled.usage.prompt, settled.usage.cached, settled.usage.completion)
    if bill is Bill.COUNTED:
        assert said == counts
        assert settled.source == ("engine_final" if ending.final else "engine_partial")
        assert settled.outcome == ending.cause
    elif bill is Bill.NOTHING:
        assert said == (0, 0, 0)
    else:
        assert settled.source in ("tokenized", "estimated")


def test_every_ending_has_a_row():
    assert set(TABLE) == set(itertools.product(Case, Seen))


@given(
    prompt=st.integers(0, 1 << 40),
    completion=st.integers(1, 1 << 40),
    cached=st.integers(0, 1 << 40),
    reasoning=st.integers(0, 1 << 40),
    delivered=st.booleans(),
    void_finish=st.booleans(),
)
def test_the_usual_ending_is_what_the_table_makes_of_it(
    prompt, completion, cached, reasoning, delivered, void_finish
):
    ending = Ending(
        cause="ok", prompt=prompt, completion=completion, cached=cached, reasoning=reasoning,
        final=True, delivered=delivered, void_finish=void_finish,
    )  # fmt: skip
    usage = TokenUsage(prompt, cached, completion, reasoning)
    assert TABLE[_case(ending), _seen(ending)] is Bill.COUNTED
    assert finished(prompt, completion, cached, reasoning) == Settled(usage, "engine_final", "ok")
    assert settle(ending, **OURS) == Settled(usage, "engine_final", "ok")


def test_zero_counted_is_billed_as_zero_not_estimated():
    settled = settle(Ending(cause="ok", final=True, prompt=0, completion=0), **OURS)

    assert (settled.usage.prompt, settled.usage.completion) == (0, 0)


def test_cached_and_reasoning_tokens_come_along():
    ending = Ending(cause="ok", final=True, prompt=100, completion=20, cached=64, reasoning=8)

    usage = settle(ending).usage

    assert (usage.cached, usage.reasoning) == (64, 8)


PAGE = Path(__file__).parents[2] / "docs" / "billing.md"
CAUSES = {
    "finished": "ok",
    "client left": "client_abort",
    "drain deadline": "shutdown",
    "key revoked": "key_revoked",
    "engine error": "engine_error",
    "timeout": "timeout",
    "gateway killed": "gateway_crash",
    "engine answered 4xx": "refused_by_engine",
}
COUNTS = {
    "final frame": [{"final": True, **COUNTED}],
    "per chunk": [COUNTED],
    "nothing": [{}],
    "anything": [
        {},
        {"prompt": 100, "completion": 0},
        {"final": True, "prompt": 100, "completion": 0},
    ],
}
BILLED = {
    "counted": (100, 20),
    "/tokenize, else estimate": (90, 120),
    "/tokenize of the text, else estimate": (9, 12),
}


def page_rows():
    """The table of the page: its cells."""
    lines = PAGE.read_text().partition("## Endings")[2].partition("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return rows[2:]


def endings_of(ending, counted):
    """Every ending that the first two cells of a row speak of."""
    cause = next(code for name, code in CAUSES.items() if ending.startswith(name))
    void = "empty finish" in ending
    early = any(words in ending for words in ("before", "no token")) or cause == "refused_by_engine"
    for counts in COUNTS[counted]:
        yield Ending(cause=cause, delivered=not early and not void, void_finish=void, **counts)


def said(cell, place):
    """(with everything tokenized, with estimates alone) as a cell of the page says it."""
    if cell == "0":
        return 0, 0
    both = BILLED[cell]
    return (both[place], both[place]) if cell == "counted" else both


@pytest.mark.parametrize("row", page_rows(), ids=lambda row: ", ".join(row[:2]))
def test_the_page_says_what_the_table_does(row):
    ending, counted, prompt, completion, source, outcome = row
    sources = source.split(", ") * 2
    for each in endings_of(ending, counted):
        for knows, known in enumerate((OURS, ESTIMATES)):
            settled = settle(each, **known)
            assert settled.usage.prompt == said(prompt, 0)[knows]
            assert settled.usage.completion == said(completion, 1)[knows]
            assert (settled.source, settled.outcome) == (sources[knows], outcome)


def test_the_page_has_every_cause():
    assert {cause for row in page_rows() for cause in CAUSES if row[0].startswith(cause)} == set(
        CAUSES
    )


def ended(billed, *attempts_ms):
    attempts = tuple(AttemptEntry(1, "http://a", 100, 100 + ms, 200, 0, 0, 1) for ms in attempts_ms)
    return UsageRecord(
        v=2, request_id="a", tenant_id=1, project_id=1, key_id=1, model_id=1, price_id=0,
        operation="chat", choices=1, prompts=1, reserved=False, prompt_estimate=0, cap=0,
        attempts=attempts, usage={}, billed=billed, source="none",
        outcome="engine_error", status=0, started_ms=100, ttft_ms=-1, total_ms=0,
    )  # fmt: skip


def test_engine_time_is_unbilled_where_nothing_was_billed():
    assert unbilled_ms(ended({"input": 0, "output": 0}, 40, 7)) == 47
    assert unbilled_ms(ended({"input": 1, "output": 0}, 40, 7)) == 0
    assert unbilled_ms(ended({})) == 0
    assert unbilled_ms(ended({}, -3)) == 0  # a clock that was set
