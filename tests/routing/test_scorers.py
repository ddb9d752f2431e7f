"""Scores stay in [0, 1] and move the right way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.scorers import kv_free, occupancy, queue, room, score
from routing.signals import EndpointSignals
from tests.support.topology import endpoint, load, signals

counts = st.none() | st.floats(min_value=0, max_value=1e6)
shares = st.floats(min_value=0, max_value=1)
seen = st.builds(
    EndpointSignals,
    endpoint_id=st.just(1),
    waiting=counts,
    kv_used_fraction=st.none() | st.floats(min_value=-1, max_value=2),
)


def test_occupancy_is_a_share_of_the_endpoints_own_size() -> None:
    assert occupancy(endpoint(1, max_in_flight=64), load(in_flight=16)) == 0.25


def test_room_compares_with_the_most_occupied() -> None:
    assert [room(busy, 0.5) for busy in (0.0, 0.25, 0.5)] == [1.0, 0.5, 0.0]
    assert room(0.0, 0.0) == 1.0


def test_a_waiting_request_halves_the_queue_score() -> None:
    waits = [queue(signals(1, waiting=n)) for n in (None, 0.0, 1.0, 9.0)]
    assert waits == [1.0, 1.0, 0.5, 0.1]
    assert queue(None) == 1.0


def test_kv_score_is_the_free_share() -> None:
    assert kv_free(signals(1, kv_used_fraction=0.75)) == 0.25
    assert kv_free(signals(1)) == kv_free(None) == 1.0


def test_the_worked_example_of_the_docstring() -> None:
    half = signals(1, waiting=1.0, kv_used_fraction=0.5)
    assert score(0.25, 0.5, half) == pytest.approx(0.5)


@given(shares, shares, seen)
def test_a_score_is_between_zero_and_one(
    occupied: float, more: float, what: EndpointSignals
) -> None:
    assert 0.0 <= score(min(occupied, more), max(occupied, more), what) <= 1.0


@given(shares, shares, st.floats(0, 1e3), st.floats(0, 1e3))
def test_more_waiting_never_raises_a_score(
    occupied: float, more: float, few: float, added: float
) -> None:
    low, most = min(occupied, more), max(occupied, more)
    assert score(low, most, signals(1, waiting=few)) >= score(
        low, most, signals(1, waiting=few + added)
    )
