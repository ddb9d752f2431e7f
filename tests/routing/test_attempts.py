"""What may be tried again, and the budget of retries."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.attempts import RETRIABLE, FailureKind, RetryBudget, may_retry


def test_the_table_knows_every_kind_of_failure() -> None:
    assert set(RETRIABLE) == set(get_args(FailureKind))


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_only_a_refusal_of_the_request_itself_is_final(kind: FailureKind) -> None:
    assert may_retry(kind, committed=False, attempts_made=1) is (kind != "engine_4xx")


def test_nothing_is_tried_again_after_commit_or_the_third_attempt() -> None:
    assert not may_retry("connect", committed=True, attempts_made=1)
    assert may_retry("connect", committed=False, attempts_made=2)
    assert not may_retry("connect", committed=False, attempts_made=3)
    assert not may_retry("connect", committed=False, attempts_made=1, max_attempts=1)


def test_a_quiet_pool_may_retry_three_times_a_window() -> None:
    budget = RetryBudget()
    assert [budget.allow(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.allow(25.0)


def test_a_busy_pool_may_retry_a_tenth_of_its_requests() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.note_request(1.0)
    assert sum(budget.allow(1.0) for _ in range(100)) == 10


def test_a_spent_budget_returns_as_the_window_slides() -> None:
    budget = RetryBudget(min_per_window=4, window_s=10.0)
    assert sum(budget.allow(0.0) for _ in range(9)) == 4
    assert not budget.allow(10.0)  # the window before is still wholly covered
    assert sum(budget.allow(15.0) for _ in range(9)) == 2  # half of it
    assert sum(budget.allow(40.0) for _ in range(9)) == 4


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_retries_never_exceed_the_share_by_more_than_the_minimum(
    steps: list[tuple[float, bool]],
) -> None:
    budget, now_s, requests, retries = RetryBudget(), 0.0, 0, 0
    windows = 1
    for gap_s, is_request in steps:
        now_s += gap_s
        windows = 2 + int(now_s // 10)
        if is_request:
            requests += 1
            budget.note_request(now_s)
        else:
            retries += budget.allow(now_s)
    assert retries <= 0.1 * 2 * requests + 3 * windows
