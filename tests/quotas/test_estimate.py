"""The learned prompt estimate, and the plan of what a request reserves."""

from hypothesis import given
from hypothesis import strategies as st

from quotas.estimate import UNKNOWN_CAP, PromptEstimator, plan


def test_first_estimate_is_a_third_of_the_bytes():
    assert PromptEstimator().estimate(300) == 100


def test_estimate_is_never_below_one_token():
    assert PromptEstimator().estimate(0) == 1


def test_estimate_settles_on_what_the_engine_counts():
    estimator = PromptEstimator()
    for _ in range(200):
        estimator.learn(1000, 250)

    assert 250 <= estimator.estimate(1000) <= 255


def test_short_bodies_and_zero_counts_teach_nothing():
    estimator = PromptEstimator()
    estimator.learn(10, 500)
    estimator.learn(1000, 0)

    assert estimator.estimate(300) == 100


@given(st.lists(st.tuples(st.integers(64, 10**6), st.integers(1, 10**6)), max_size=50))
def test_estimate_stays_positive_whatever_was_learned(seen):
    estimator = PromptEstimator()
    for body_bytes, tokens in seen:
        estimator.learn(body_bytes, tokens)

    assert estimator.estimate(1000) >= 1


def made(**changes):
    known = {
        "prompt_estimate": 100,
        "sequences": 1,
        "explicit_cap": None,
        "default_cap": None,
        "model_cap": None,
        "context_tokens": None,
        "tightest_tokens": None,
    }
    return plan(**{**known, **changes})


def test_explicit_cap_is_reserved_for_every_sequence_and_not_injected():
    it = made(explicit_cap=50, sequences=4)

    assert (it.reserve, it.inject_cap) == (100 + 4 * 50, None)


def test_completions_default_is_reserved_and_not_injected():
    it = made(default_cap=16)

    assert (it.reserve, it.inject_cap) == (116, None)


def test_model_cap_is_cut_to_context_and_injected():
    it = made(model_cap=8192, context_tokens=4096)

    assert (it.cap, it.inject_cap) == (3996, 3996)


def test_injected_cap_leaves_room_for_a_prompt_denser_than_estimated():
    short = made(prompt_estimate=10, prompt_bytes=30, context_tokens=4096)
    dense = made(prompt_estimate=1000, prompt_bytes=9000, context_tokens=4096)

    assert short.cap == 4096 - 20 - 64
    assert dense.cap == 4096 - 2000 - 64


def test_model_cap_is_cut_to_what_the_tightest_limit_can_ever_grant():
    it = made(model_cap=8192, tightest_tokens=1100, sequences=2)

    assert (it.cap, it.reserve) == (500, 1100)


def test_prompt_above_the_tightest_limit_reserves_more_than_it_can_grant():
    it = made(tightest_tokens=50)

    assert it.reserve > 50


def test_unbounded_model_gets_a_stated_cap():
    assert made().inject_cap == UNKNOWN_CAP
