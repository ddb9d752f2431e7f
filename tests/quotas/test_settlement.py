"""The table of endings, a case a row, and that no ending is left out."""

import itertools

import pytest

from quotas.settlement import TABLE, Case, Ending, Seen, settle

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


def test_every_ending_has_a_row():
    assert set(TABLE) == set(itertools.product(Case, Seen))


def test_zero_counted_is_billed_as_zero_not_estimated():
    settled = settle(Ending(cause="ok", final=True, prompt=0, completion=0), **OURS)

    assert (settled.usage.prompt, settled.usage.completion) == (0, 0)


def test_cached_and_reasoning_tokens_come_along():
    ending = Ending(cause="ok", final=True, prompt=100, completion=20, cached=64, reasoning=8)

    usage = settle(ending).usage

    assert (usage.cached, usage.reasoning) == (64, 8)
