"""The breaker's table: five in a row eject, longer each time; busy is not ill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.breaker import TRIAL_S, on_busy, on_failure, on_sent, on_success
from routing.signals import EndpointLoad


def fail(load: EndpointLoad, times: int, now_s: float = 0.0) -> list[bool]:
    return [on_failure(load, now_s) for _ in range(times)]


def test_the_fifth_failure_in_a_row_ejects_for_five_seconds() -> None:
    load = EndpointLoad()
    assert fail(load, 5, now_s=10.0) == [False, False, False, False, True]
    assert load.ejected_until_s == 15.0


def test_a_success_between_starts_the_count_again() -> None:
    load = EndpointLoad()
    fail(load, 4)
    on_success(load)
    assert fail(load, 4) == [False] * 4


def test_failures_under_way_at_the_ejection_do_not_lengthen_it() -> None:
    load = EndpointLoad()
    fail(load, 5)
    assert fail(load, 20, now_s=1.0) == [False] * 20
    assert (load.ejected_until_s, load.ejections) == (5.0, 1)


def test_back_on_probation_one_failure_ejects_and_each_time_doubles_to_five_minutes() -> None:
    load = EndpointLoad()
    fail(load, 5)
    lengths = []
    for _ in range(8):
        back_s = load.ejected_until_s
        assert on_failure(load, back_s)
        lengths.append(load.ejected_until_s - back_s)
    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300]


def test_back_on_probation_one_request_goes_first_and_its_success_lets_the_others_in() -> None:
    load = EndpointLoad()
    fail(load, 5)
    assert load.is_out(4.9)
    assert not load.is_out(5.0)
    on_sent(load, 5.0)
    assert load.is_out(5.1)
    on_success(load)
    assert not load.is_out(5.2)
    on_sent(load, 5.2)
    assert not load.is_out(5.2)


def test_a_trial_that_nobody_ends_frees_itself() -> None:
    load = EndpointLoad()
    fail(load, 5)
    on_sent(load, 6.0)
    assert not load.is_out(6.0 + TRIAL_S)


def test_a_trial_that_fails_ejects_again() -> None:
    load = EndpointLoad()
    fail(load, 5)
    on_sent(load, 6.0)
    assert on_failure(load, 6.5)
    assert (load.ejected_until_s, load.trial_until_s) == (16.5, 0.0)


def test_a_healthy_endpoint_needs_no_trial() -> None:
    load = EndpointLoad()
    fail(load, 4)
    on_sent(load, 1.0)
    assert not load.is_out(1.0)


def test_success_forgives_one_ejection_at_a_time() -> None:
    load = EndpointLoad()
    fail(load, 5)
    on_failure(load, load.ejected_until_s)
    on_success(load)
    on_success(load)
    on_success(load)
    assert (load.ejections, load.consecutive_failures) == (0, 0)


@pytest.mark.parametrize(
    ("asked_s", "until_s"),
    [
        pytest.param(None, 100.5, id="asks nothing"),
        pytest.param(7.0, 107.0, id="as it asks"),
        pytest.param(0.0, 100.1, id="at least a moment"),
        pytest.param(86_400.0, 160.0, id="at most a minute"),
    ],
)
def test_busy_backs_off_for_what_the_engine_asks(asked_s: float | None, until_s: float) -> None:
    load = EndpointLoad()
    on_busy(load, 100.0, asked_s)
    assert load.back_off_until_s == pytest.approx(until_s)


def test_busy_is_not_ill_and_a_shorter_wait_does_not_cut_a_longer_one() -> None:
    load = EndpointLoad()
    fail(load, 4)
    on_busy(load, 0.0, 30.0)
    on_busy(load, 1.0, None)
    assert (load.consecutive_failures, load.ejected_until_s) == (0, 0.0)
    assert load.back_off_until_s == 30.0


@given(st.lists(st.sampled_from(("sent", "success", "failure", "busy", "later")), max_size=60))
def test_success_says_nothing_of_an_endpoint_without_failures_and_ejections(events):
    load, now_s = EndpointLoad(), 0.0
    for event in events:
        if event == "sent":
            on_sent(load, now_s)
        elif event == "failure":
            on_failure(load, now_s)
        elif event == "busy":
            on_busy(load, now_s, None)
        elif event == "later":
            now_s += 7.0
        else:
            troubled = load.consecutive_failures or load.ejections
            before = [getattr(load, name) for name in EndpointLoad.__slots__]
            on_success(load)
            after = [getattr(load, name) for name in EndpointLoad.__slots__]
            assert troubled or after == before
