"""What each limit is truly charged at the end."""

from hypothesis import given
from hypothesis import strategies as st

from quotas.calendar import periods_at
from quotas.charges import DIMENSIONS, Layout, true_charges
from quotas.limits import Charge, Limit
from quotas.usage import TokenUsage
from tests.support.limits import bucket, slots

DAY = periods_at("day", 1_800_000_000_000)
BUDGET = Limit("k1", "key a", "money", "quota", 10**6, 0, 1, "day")
RESERVED = (
    Charge(bucket("t1", "requests"), 1),
    Charge(bucket("t1", "input_tokens"), 40),
    Charge(bucket("t1", "output_tokens"), 100),
    Charge(Limit("t1", "t", "tokens", "quota", 10**6, 0, 1, "day", cached_permille=100), 140, DAY),
    Charge(slots("t1"), 1),
    Charge(BUDGET, 900, DAY),
)


DIMENSION = st.sampled_from(DIMENSIONS)


@given(
    st.lists(st.tuples(DIMENSION, st.booleans()), max_size=9),
    st.tuples(*[st.integers(0, 50)] * 6),
    st.none() | st.builds(TokenUsage, *[st.integers(0, 50)] * 4),
    st.integers(0, 50),
)
def test_charges_of_a_known_layout_are_those_found_limit_by_limit(rows, asked, usage, cost):
    limits = tuple(
        Limit("t1", "t", dimension, "quota" if is_quota else "bucket", 9, 9, n)
        for n, (dimension, is_quota) in enumerate(rows)
    )
    layout = Layout(limits)
    reserved = tuple(
        Charge(limit, amount, DAY if limit.algorithm == "quota" else None)
        for limit, amount in zip(limits, layout.amounts(asked), strict=True)
    )

    known = true_charges(reserved, usage, lambda: cost, layout)

    assert known == true_charges(reserved, usage, lambda: cost)


def amounts(usage, cost=77):
    return [each.amount for each in true_charges(RESERVED, usage, lambda: cost)]


def test_counts_replace_what_was_reserved_with_cached_input_by_its_weight():
    assert amounts(TokenUsage(prompt=50, cached=30, completion=7)) == [1, 50, 7, 20 + 3 + 7, 0, 77]


def test_without_proof_tokens_stay_as_reserved_and_money_is_what_is_billed():
    assert amounts(None, cost=0) == [1, 40, 100, 140, 0, 0]


def test_a_refused_request_used_no_tokens():
    assert amounts(TokenUsage(), cost=0) == [1, 0, 0, 0, 0, 0]


def test_periods_stay_those_of_the_reservation():
    settled = true_charges(RESERVED, TokenUsage(1, 0, 1), lambda: 1)
    assert [each.periods for each in settled] == [each.periods for each in RESERVED]


def test_cost_is_asked_for_only_where_money_is_limited():
    def never() -> int:
        raise AssertionError

    assert len(true_charges(RESERVED[:5], None, never)) == 5
