"""Which endpoints are out, why, and when the judgement itself is doubted."""

from typing import Any

import pytest

from routing.filters import Reason, is_panic, why_not
from routing.request import RoutingRequest
from tests.support.topology import endpoint, load, pool, signals

NOW_S = 100.0


@pytest.mark.parametrize(
    ("reason", "of_endpoint", "of_signals", "of_load", "of_request"),
    [
        pytest.param(None, {}, {}, {}, {}, id="fit"),
        pytest.param(None, {}, {"healthy": None}, {}, {}, id="never probed is believed"),
        pytest.param("draining", {"draining": True}, {}, {}, {}, id="draining"),
        pytest.param("tried", {}, {}, {}, {"tried": (1,)}, id="failed this request already"),
        pytest.param("tried", {}, {}, {}, {"tried": frozenset({1})}, id="tried as a set"),
        pytest.param("full", {"max_in_flight": 2}, {}, {"in_flight": 2}, {}, id="full"),
        pytest.param(None, {"max_in_flight": 2}, {}, {"in_flight": 1}, {}, id="one place left"),
        pytest.param("backed_off", {}, {}, {"back_off_until_s": 100.1}, {}, id="asked to wait"),
        pytest.param(None, {}, {}, {"back_off_until_s": 100.0}, {}, id="wait is over"),
        pytest.param("ejected", {}, {}, {"ejected_until_s": 101.0}, {}, id="ejected"),
        pytest.param(None, {}, {}, {"ejected_until_s": 99.0}, {}, id="ejection is over"),
        pytest.param("ejected", {}, {}, {"trial_until_s": 101.0}, {}, id="its trial is under way"),
        pytest.param("unhealthy", {}, {"healthy": False}, {}, {}, id="its probe fails"),
        pytest.param("context", {}, {}, {}, {"needs_context": 4097}, id="one token too long"),
        pytest.param(None, {}, {}, {}, {"needs_context": 4096}, id="just fits"),
    ],
)
def test_an_endpoint_is_out_for_one_named_reason(
    reason: Reason | None,
    of_endpoint: dict[str, Any],
    of_signals: dict[str, Any],
    of_load: dict[str, float],
    of_request: dict[str, Any],
) -> None:
    candidate = endpoint(1, **of_endpoint)
    seen = signals(1, **{"healthy": True, "max_model_len": {"llama": 4096}, **of_signals})
    request = RoutingRequest("llama", pool(candidate), **of_request)
    assert why_not(candidate, seen, load(**of_load), request, NOW_S) == reason


def test_an_endpoint_without_signals_is_fit() -> None:
    candidate = endpoint(1)
    request = RoutingRequest("llama", pool(candidate), needs_context=10**9)
    assert why_not(candidate, None, load(), request, NOW_S) is None


@pytest.mark.parametrize(
    ("ejected", "unhealthy", "draining", "panic"),
    [
        pytest.param((), (), (), False, id="all well"),
        pytest.param((1, 2), (), (), False, id="exactly half is enough"),
        pytest.param((1, 2, 3), (), (), True, id="less than half"),
        pytest.param((1, 2), (3,), (), True, id="probe and ejection add up"),
        pytest.param((1,), (1, 2), (), False, id="one endpoint counts once"),
        pytest.param((1, 2), (), (3, 4), True, id="draining ones are not of the pool"),
    ],
)
def test_panic_is_less_than_half_of_the_pool_healthy(
    *, ejected: tuple[int, ...], unhealthy: tuple[int, ...], draining: tuple[int, ...], panic: bool
) -> None:
    members = pool(*(endpoint(n, draining=n in draining) for n in (1, 2, 3, 4)))
    seen = {n: signals(n, healthy=False) for n in unhealthy}
    loads = {n: load(ejected_until_s=NOW_S + 1) for n in ejected}
    assert is_panic(members, seen, loads, NOW_S) is panic
