"""What serving costs: every attempt, every hour, and what is left."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quotas.contracts import HOUR_MS
from quotas.costs import EndpointCost, attempts_cost, hours_between, hours_cost, margin_ppm, spread
from quotas.record import AttemptEntry

PER_TOKEN = {1: EndpointCost(input_nano=50_000_000, output_nano=200_000_000)}


def attempt(endpoint_id: int = 1, prompt: int = 1_000, completion: int = 100, choices: int = 1):
    return AttemptEntry(endpoint_id, "http://e", 0, 10, 200, prompt, completion, choices)


def test_failed_attempts_cost_as_well():
    assert attempts_cost([attempt(completion=0), attempt()], PER_TOKEN) == {
        "USD": 50_000 + 50_000 + 20_000
    }


def test_a_prompt_costs_once_a_choice():
    assert attempts_cost([attempt(choices=4, completion=0)], PER_TOKEN) == {"USD": 200_000}


def test_an_endpoint_without_a_price_a_token_costs_by_its_hours_alone():
    costs = {1: EndpointCost(hour_nano=5_000_000_000)}

    assert attempts_cost([attempt(), attempt(endpoint_id=2)], costs) == {}
    assert hours_cost(5_000_000_000, HOUR_MS // 2) == 2_500_000_000


@given(
    st.integers(0, 10**12),
    st.dictionaries(st.text(min_size=1), st.integers(0, 10**9), max_size=6),
)
def test_a_shared_cost_is_spread_without_a_rest(cost, busy):
    assert sum(spread(cost, busy).values()) == cost


def test_hours_in_which_nobody_came_are_idle():
    assert spread(7, {"acme": 0}) == {"": 7}


def test_margin_is_what_is_left_of_the_net_sale():
    assert margin_ppm(1_000, 250) == 750_000
    assert margin_ppm(1_000, 1_500) == -500_000
    assert margin_ppm(0, 5) == 0


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.lists(st.integers(0, 10**12), min_size=2, max_size=8),
)
def test_stretches_that_follow_each_other_cost_as_much_as_the_whole(hour_nano, held, moments):
    moments = sorted(moments)
    parts = [
        hours_between(hour_nano, held, start, end) for start, end in itertools.pairwise(moments)
    ]

    assert sum(parts) == hours_between(hour_nano, held, moments[0], moments[-1])
    assert hours_between(hour_nano, held, held, held + HOUR_MS) == hour_nano
