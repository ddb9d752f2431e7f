"""The learned prompt estimate, and the plan of what a request reserves."""

import random

from hypothesis import given
from hypothesis import strategies as st

from quotas.estimate import UNKNOWN_CAP, PromptEstimator, ceiling, plan


def test_first_estimate_is_a_third_of_the_bytes():
    assert PromptEstimator().estimate(300) == 100


def test_estimate_is_never_below_one_token():
    assert PromptEstimator().estimate(0) == 1


def test_estimate_settles_on_what_the_engine_counts():
    estimator = PromptEstimator()
    for _ in range(200):
        estimator.learn(1000, 250)

    assert estimator.estimate(1000) == 250


def test_zero_counts_teach_nothing():
    estimator = PromptEstimator()
    for _ in range(50):
        estimator.learn(1000, 0)

    assert estimator.estimate(300) == 100


def test_few_counts_raise_the_estimate_and_do_not_lower_it():
    estimator = PromptEstimator()
    estimator.learn(900, 100)
    assert estimator.estimate(900) == 300
    estimator.learn(900, 600)
    assert estimator.estimate(900) == 600


def test_short_bodies_do_not_teach_long_ones():
    estimator = PromptEstimator()
    for _ in range(50):
        estimator.learn(70, 60)  # a template around one word

    assert estimator.estimate(70) == 60
    assert estimator.estimate(3000) == 1000


def test_estimate_is_below_the_count_about_once_in_a_hundred_requests():
    chance = random.Random(7)
    estimator = PromptEstimator()
    below = 0
    for at in range(6000):
        text_bytes = int(chance.lognormvariate(7, 1.2)) + 60
        tokens = max(1, int(text_bytes * chance.gauss(0.23, 0.03)) + chance.randint(5, 40))
        below += at >= 1000 and estimator.estimate(text_bytes) < tokens
        estimator.learn(text_bytes, tokens)

    assert below <= 5000 * 0.015


def test_estimate_follows_prompts_that_become_denser():
    estimator = PromptEstimator()
    for _ in range(300):
        estimator.learn(1000, 200)
    for _ in range(3):
        estimator.learn(1000, 600)

    assert estimator.estimate(1000) == 600


def test_ceiling_is_the_least_of_what_bounds_the_prompt():
    bytes_only = {"prompts": 1, "text_bytes": 300, "template_tokens": 40, "context_tokens": None}
    assert ceiling(**bytes_only) == 340
    assert ceiling(**{**bytes_only, "context_tokens": 100}) == 100
    assert ceiling(**bytes_only, counted=70) == 70
    assert ceiling(**{**bytes_only, "prompts": 3}) == 420


def test_no_ceiling_where_nothing_bounds_the_prompt():
    unknown = {"prompts": 1, "context_tokens": None}
    assert ceiling(**unknown, text_bytes=None, template_tokens=40) is None
    assert ceiling(**unknown, text_bytes=300, template_tokens=None) is None


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


def test_cap_is_cut_to_what_limits_on_output_can_ever_grant():
    it = made(model_cap=8192, tightest_output=900, sequences=3)

    assert (it.cap, it.output, it.reserve) == (300, 900, 1000)
