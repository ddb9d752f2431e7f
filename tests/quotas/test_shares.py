"""Splits are exact: parts sum to the whole, whatever the shares."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from quotas.money import cost_nano
from quotas.shares import BASIS_POINTS, Share, share_out, split

amounts = st.integers(-(10**15), 10**15)
weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any)


@given(amounts, weights)
def test_parts_sum_to_the_whole_and_are_less_than_one_off(whole, weighted):
    parts = split(whole, weighted)

    assert sum(parts) == whole
    for part, weight in zip(parts, weighted, strict=True):
        assert abs(part - Fraction(whole * weight, sum(weighted))) < 1


@st.composite
def shares(draw):
    left = BASIS_POINTS
    found = []
    for number in range(draw(st.integers(0, 4))):
        points = draw(st.integers(0, left))
        left -= points
        floor = draw(st.sampled_from([0, 0, 5_000_000]))
        found.append(
            Share(publisher_id=number + 1, basis_points=points, floor_nano_per_million=floor)
        )
    return found


@given(st.integers(0, 10**15), st.integers(0, 10**7), shares())
def test_publishers_and_platform_get_all_of_it_and_no_more(net, tokens, sold):
    parts, platform = share_out(net, tokens, sold)

    assert sum(parts) + platform == net
    for share, part in zip(sold, parts, strict=True):
        assert part >= cost_nano(tokens, share.floor_nano_per_million)


def test_seventy_percent_of_an_odd_nano_goes_one_way_for_ever():
    parts, platform = share_out(101, 0, [Share(publisher_id=1, basis_points=7_000)])

    assert (parts, platform) == ([71], 30)


def test_a_floor_is_paid_though_the_sale_brought_less():
    share = Share(publisher_id=1, basis_points=5_000, floor_nano_per_million=1_000_000)

    assert share_out(100, 1_000_000, [share]) == ([1_000_000], -999_900)
