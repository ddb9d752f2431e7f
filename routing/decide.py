"""Filter, score, pick: one decision, over values alone. The order is that of the llm-d router.

Time and chance are arguments, so that a decision can be replayed. It runs once an attempt on the
path of every request: a few microseconds for a handful of endpoints. Not here: whether to try
again (``routing.attempts``), and what an attempt's end means (``routing.breaker``).
"""

import math
from collections.abc import Callable, Mapping

import msgspec

from routing.errors import NoEndpoint
from routing.filters import LAST_RESORT, Reason, is_panic, is_probed_healthy, why_not
from routing.request import RoutingRequest
from routing.scorers import occupancy, score
from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Endpoint

#: Scores within this share of the best are the same: signals are not that exact, and several
#: processes that see the same numbers must not all choose the same endpoint.
NEAR_TIE = 0.02
#: Bounds and default of the wait a refused caller is told, in seconds.
RETRY_AFTER_MIN_S = 1
RETRY_AFTER_MAX_S = 60
IDLE = EndpointLoad()  # of an endpoint nothing was sent to yet; never written


class Decision(msgspec.Struct, frozen=True):
    """The endpoint, its score, all candidates with theirs, and why the others were out."""

    endpoint: Endpoint
    score: float
    candidates: list[tuple[float, Endpoint]]
    reasons: dict[int, Reason]


def decide(
    request: RoutingRequest,
    signals: Mapping[int, EndpointSignals],
    loads: Mapping[int, EndpointLoad],
    now_s: float,
    chance: Callable[[], float],
) -> Decision:
    """The best endpoint of the pool for the request. ``chance`` gives a float in [0, 1).

    Raises ``NoEndpoint`` when none may serve: all full, backed off, tried, draining or ejected.
    """
    fit: list[Endpoint] = []
    reasons: dict[int, Reason] = {}
    for endpoint in request.pool.endpoints:
        each = endpoint.id
        reason = why_not(endpoint, signals.get(each), loads.get(each, IDLE), request, now_s)
        if reason is None:
            fit.append(endpoint)
        else:
            reasons[each] = reason
    if reasons:
        fit = _relax(fit, request, signals, loads, now_s, reasons)
    if len(fit) == 1:  # the common small pool: nothing to compare
        return Decision(fit[0], 1.0, [(1.0, fit[0])], reasons)
    if not fit:
        raise NoEndpoint(_retry_after_s(request, loads, now_s, reasons), reasons)
    return _pick(fit, signals, loads, chance, reasons)


def _relax(
    fit: list[Endpoint],
    request: RoutingRequest,
    signals: Mapping[int, EndpointSignals],
    loads: Mapping[int, EndpointLoad],
    now_s: float,
    reasons: dict[int, Reason],
) -> list[Endpoint]:
    """Take the ejected back in when too few are left to believe it, then the last resorts."""
    endpoints = request.pool.endpoints
    if "ejected" in reasons.values() and is_panic(request.pool, signals, loads, now_s):
        fit += [
            each
            for each in endpoints
            if reasons.get(each.id) == "ejected" and is_probed_healthy(signals.get(each.id))
        ]
    seen = frozenset(reasons.values())
    for resort, forbidding in LAST_RESORT.items():
        if fit:
            break
        if not seen & forbidding:
            fit = [each for each in endpoints if reasons.get(each.id) == resort]
    if not fit and request.guaranteed:  # it waits at the engine rather than with its sender
        fit = [each for each in endpoints if reasons.get(each.id) == "backed_off"]
    for each in fit:
        reasons.pop(each.id, None)
    return fit


def _pick(
    fit: list[Endpoint],
    signals: Mapping[int, EndpointSignals],
    loads: Mapping[int, EndpointLoad],
    chance: Callable[[], float],
    reasons: dict[int, Reason],
) -> Decision:
    occupied = [occupancy(each, loads.get(each.id, IDLE)) for each in fit]
    most = max(occupied)
    candidates = [
        (score(busy, most, signals.get(each.id)), each)
        for busy, each in zip(occupied, fit, strict=True)
    ]
    best = max(scored for scored, _ in candidates)
    floor = best * (1.0 - NEAR_TIE)
    near = [pair for pair in candidates if pair[0] >= floor]
    picked = near[0] if len(near) == 1 else near[int(chance() * len(near))]
    return Decision(picked[1], picked[0], candidates, reasons)


def _retry_after_s(
    request: RoutingRequest,
    loads: Mapping[int, EndpointLoad],
    now_s: float,
    reasons: dict[int, Reason],
) -> int:
    """Seconds to the earliest end of a back-off or an ejection, rounded up, within bounds.

    A full endpoint frees a place any moment: the least wait. Nothing known to end: the least too
    (the endpoints that this request tried are open to the next one).
    """
    ends = [now_s]
    for each in request.pool.endpoints:
        load = loads.get(each.id, IDLE)
        match reasons.get(each.id):
            case "full" | "tried":
                return RETRY_AFTER_MIN_S
            case "backed_off":
                ends.append(load.back_off_until_s)
            case "ejected":
                ends.append(max(load.ejected_until_s, load.trial_until_s))
            case _:
                pass
    wait_s = min(ends[1:], default=now_s) - now_s
    return max(RETRY_AFTER_MIN_S, min(RETRY_AFTER_MAX_S, math.ceil(wait_s)))
