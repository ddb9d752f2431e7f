"""Decisions: the idle before the busy, patience before despair, and an honest wait."""

import random
import timeit
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.decide import Decision, decide
from routing.errors import NoEndpoint
from routing.request import RoutingRequest
from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Pool
from tests.support.topology import endpoint, load, pool, signals

NOW_S = 100.0
TWO = pool(endpoint(1), endpoint(2))


def choose(
    members: Pool = TWO,
    seen: Mapping[int, EndpointSignals] | None = None,
    loads: Mapping[int, EndpointLoad] | None = None,
    chance: Callable[[], float] = lambda: 0.0,
    **of_request: Any,
) -> Decision:
    request = RoutingRequest("llama", members, **of_request)
    return decide(request, seen or {}, loads or {}, NOW_S, chance)


def refusal(*args: Any, **fields: Any) -> NoEndpoint:
    with pytest.raises(NoEndpoint) as caught:
        choose(*args, **fields)
    return caught.value


def test_the_second_of_two_requests_finds_the_idle_endpoint() -> None:
    assert choose(loads={1: load(in_flight=1)}).endpoint.id == 2
    assert choose(loads={2: load(in_flight=1)}).endpoint.id == 1


def test_a_queue_seen_at_the_engine_outweighs_our_own_few_requests() -> None:
    seen = {1: signals(1, waiting=20.0, kv_used_fraction=0.9), 2: signals(2, waiting=0.0)}
    assert choose(seen=seen, loads={2: load(in_flight=10)}).endpoint.id == 2


def test_an_endpoint_twice_as_large_takes_twice_as_much() -> None:
    members = pool(endpoint(1, max_in_flight=64), endpoint(2, max_in_flight=128))
    loads = {1: load(), 2: load()}
    for _ in range(150):
        loads[choose(members, loads=loads).endpoint.id].in_flight += 1
    assert loads[2].in_flight == pytest.approx(2 * loads[1].in_flight, abs=4)


def test_chance_settles_near_ties_and_nothing_else() -> None:
    near = {1: load(in_flight=100), 2: load(in_flight=99)}
    far = {1: load(in_flight=100), 2: load(in_flight=50)}
    picks = {choose(loads=near, chance=lambda at=at: at).endpoint.id for at in (0.0, 0.999)}
    assert picks == {1, 2}
    assert choose(loads=far, chance=lambda: 0.0).endpoint.id == 2


def test_a_decision_shows_its_candidates_and_who_was_out() -> None:
    members = pool(endpoint(1), endpoint(2), endpoint(3, draining=True))
    decision = choose(members, loads={1: load(in_flight=4)})
    assert decision.reasons == {3: "draining"}
    assert [each.id for _, each in decision.candidates] == [1, 2]
    assert decision.score == max(scored for scored, _ in decision.candidates)


def test_an_ejected_endpoint_rests_while_half_the_pool_is_well() -> None:
    out = {1: load(ejected_until_s=NOW_S + 5)}
    assert choose(loads=out, chance=lambda: 0.0).reasons == {1: "ejected"}


def test_ejection_never_empties_a_pool() -> None:
    out = {1: load(ejected_until_s=NOW_S + 5), 2: load(ejected_until_s=NOW_S + 5)}
    assert {choose(loads=out, chance=lambda at=at: at).endpoint.id for at in (0.0, 0.9)} == {1, 2}


def test_two_witnesses_are_believed_in_a_panic_too() -> None:
    """Ejected by our own failures and failing its probe: refused at once, no connect timeout."""
    alone = pool(endpoint(1))
    seen = {1: signals(1, healthy=False)}
    error = refusal(alone, seen, {1: load(ejected_until_s=NOW_S + 4.2)})
    assert (error.retry_after_s, error.reasons) == (5, {1: "ejected"})


def test_an_endpoint_that_fails_its_probe_is_the_last_resort() -> None:
    seen = {1: signals(1, healthy=False)}
    assert choose(seen=seen, chance=lambda: 0.0).endpoint.id == 2
    assert choose(seen=seen, tried=(2,)).endpoint.id == 1


def test_a_full_sibling_is_worth_the_wait_more_than_a_dead_one() -> None:
    members = pool(endpoint(1), endpoint(2, max_in_flight=1))
    error = refusal(members, {1: signals(1, healthy=False)}, {2: load(in_flight=1)})
    assert (error.retry_after_s, error.reasons) == (1, {1: "unhealthy", 2: "full"})


def test_a_long_request_goes_where_it_fits_or_is_refused_by_the_engine_itself() -> None:
    seen = {n: signals(n, max_model_len={"llama": size}) for n, size in ((1, 4096), (2, 131_072))}
    assert choose(seen=seen, needs_context=100_000, chance=lambda: 0.0).endpoint.id == 2
    assert choose(seen=seen, needs_context=200_000, chance=lambda: 0.0).endpoint.id == 1
    busy = {2: load(back_off_until_s=NOW_S + 3)}
    assert refusal(TWO, seen, busy, needs_context=100_000).reasons == {
        1: "context",
        2: "backed_off",
    }


def test_a_busy_engine_is_left_alone_and_the_wait_is_the_earliest_end() -> None:
    loads = {1: load(back_off_until_s=NOW_S + 9.5), 2: load(back_off_until_s=NOW_S + 2.5)}
    assert refusal(loads=loads).retry_after_s == 3


@pytest.mark.parametrize(
    ("loads", "wait_s"),
    [
        pytest.param({1: {"back_off_until_s": NOW_S + 0.1}}, 1, id="never below a second"),
        pytest.param({1: {"back_off_until_s": NOW_S + 999}}, 60, id="never above a minute"),
        pytest.param({1: {"in_flight": 256}}, 1, id="full: a place may be free any moment"),
    ],
)
def test_the_wait_is_between_a_second_and_a_minute(
    loads: dict[int, dict[str, float]], wait_s: int
) -> None:
    made = {endpoint_id: load(**fields) for endpoint_id, fields in loads.items()}
    assert refusal(pool(endpoint(1)), None, made).retry_after_s == wait_s


def test_an_empty_pool_serves_nobody() -> None:
    error = refusal(pool())
    assert (error.retry_after_s, error.reasons) == (1, {})


def test_all_tried_serves_nobody() -> None:
    assert refusal(tried=(1, 2)).reasons == {1: "tried", 2: "tried"}


endpoints = st.builds(
    lambda draining, most: {"draining": draining, "max_in_flight": most},
    st.booleans(),
    st.integers(1, 4),
)
whens = st.sampled_from([0.0, NOW_S - 1, NOW_S + 1, NOW_S + 400])


def attempt(
    members: Pool,
    seen: Mapping[int, EndpointSignals],
    loads: Mapping[int, EndpointLoad],
    tried: frozenset[int],
) -> Decision | NoEndpoint:
    try:
        return choose(members, seen, loads, random.Random(1).random, tried=tried)
    except NoEndpoint as error:
        return error


@given(st.lists(endpoints, min_size=1, max_size=5), st.data())
def test_a_decision_never_breaks_a_hard_rule(shapes: list[dict[str, Any]], data: Any) -> None:
    """Draining, tried, full and backed-off endpoints are never chosen; every wait is in bounds."""
    members = pool(*(endpoint(n, **shape) for n, shape in enumerate(shapes)))
    loads: dict[int, EndpointLoad] = {}
    seen: dict[int, EndpointSignals] = {}
    for each in members.endpoints:
        loads[each.id] = load(
            in_flight=data.draw(st.integers(0, 5)),
            back_off_until_s=data.draw(whens),
            ejected_until_s=data.draw(whens),
        )
        seen[each.id] = signals(each.id, healthy=data.draw(st.sampled_from([None, True, False])))
    tried = data.draw(st.frozensets(st.integers(0, 4), max_size=2))
    outcome = attempt(members, seen, loads, tried)
    if isinstance(outcome, NoEndpoint):
        assert 1 <= outcome.retry_after_s <= 60
        assert outcome.reasons.keys() == {each.id for each in members.endpoints}
        return
    chosen = outcome.endpoint
    its = loads[chosen.id]
    assert not chosen.draining
    assert chosen.id not in tried
    assert chosen.id not in outcome.reasons
    assert its.in_flight < chosen.max_in_flight
    assert its.back_off_until_s <= NOW_S


def test_a_decision_costs_microseconds() -> None:
    """The budget is 5 us for four endpoints on an idle machine; a busy one gets ten times that."""
    members = pool(*(endpoint(n) for n in range(4)))
    seen = {n: signals(n, healthy=True, waiting=float(n), kv_used_fraction=0.2) for n in range(4)}
    loads = {n: load(in_flight=n + 3) for n in range(4)}
    request = RoutingRequest("llama", members, 100, (), 100)
    draw = random.Random(1).random
    runs = timeit.repeat(lambda: decide(request, seen, loads, NOW_S, draw), number=2000, repeat=5)
    assert min(runs) / 2000 < 50e-6


def test_sold_capacity_is_not_kept_out_by_others_load() -> None:
    full = {each.id: load(in_flight=each.max_in_flight) for each in TWO.endpoints}
    assert refusal(loads=full).reasons == {1: "full", 2: "full"}
    assert choose(loads=full, guaranteed=True).endpoint.id == 1
    busy = full | {1: load(back_off_until_s=NOW_S + 5)}
    assert choose(loads=busy, guaranteed=True).endpoint.id == 2, "one that asked to wait comes last"
    waiting = {1: load(back_off_until_s=NOW_S + 5), 2: load(ejected_until_s=NOW_S + 5)}
    assert choose(loads=waiting, guaranteed=True).endpoint.id == 1
    drained = pool(endpoint(1, draining=True))
    assert refusal(drained, guaranteed=True).reasons == {1: "draining"}
