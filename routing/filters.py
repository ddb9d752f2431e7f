"""Which endpoints may serve a request at all, and which only when nobody else can.

One pass with early ends instead of a filter object a rule (the chain of the llm-d router): the
decision sits on the path of every request. The floor under ejection is Envoy's panic threshold:
when half a pool looks ill, the judgement is more likely wrong than the pool.
"""

from collections.abc import Mapping
from typing import Literal

from routing.request import RoutingRequest
from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Endpoint, Pool

Reason = Literal["draining", "tried", "full", "backed_off", "ejected", "context", "unhealthy"]

#: Ejection is believed while at least this share of the pool is healthy (Envoy: 50 %).
PANIC_HEALTHY_SHARE = 0.5
#: Who serves when nobody fit does, in this order, and which reasons of a sibling forbid it. Where
#: every context seems too short, the estimate may be too long, and the engine's own 400 is the honest
#: answer. A failed probe may be 2 s old. Neither where waiting for a sibling is the better advice.
LAST_RESORT: dict[Reason, frozenset[Reason]] = {
    "context": frozenset({"tried", "full", "backed_off", "ejected", "unhealthy"}),
    "unhealthy": frozenset({"full", "backed_off"}),
}


def why_not(
    endpoint: Endpoint,
    signals: EndpointSignals | None,
    load: EndpointLoad,
    request: RoutingRequest,
    now_s: float,
) -> Reason | None:
    """Why the endpoint is out; None when it is fit. The gravest reason comes first.

    An endpoint that was never probed is believed healthy: a new pool serves at once.
    """
    if endpoint.draining:
        return "draining"
    if endpoint.id in request.tried:
        return "tried"
    if load.back_off_until_s > now_s:
        return "backed_off"
    if load.in_flight >= endpoint.max_in_flight and not request.guaranteed:
        return "full"
    if load.is_out(now_s):
        return "ejected"
    if signals is None:
        return None
    if signals.healthy is False:
        return "unhealthy"
    if request.needs_context:
        context = signals.max_model_len.get(request.model_upstream)
        if context is not None and request.needs_context > context:
            return "context"
    return None


def is_panic(
    pool: Pool,
    signals: Mapping[int, EndpointSignals],
    loads: Mapping[int, EndpointLoad],
    now_s: float,
) -> bool:
    """True when less than half of the pool, draining endpoints apart, is healthy.

    Healthy: not ejected, and its probe does not say otherwise. Ejection is then ignored, except
    where the probe agrees with it: two witnesses are believed.
    """
    members = healthy = 0
    for endpoint in pool.endpoints:
        if endpoint.draining:
            continue
        members += 1
        load = loads.get(endpoint.id)
        ejected = load is not None and load.is_out(now_s)
        healthy += not ejected and is_probed_healthy(signals.get(endpoint.id))
    return healthy < members * PANIC_HEALTHY_SHARE


def is_probed_healthy(signals: EndpointSignals | None) -> bool:
    """What the active probe says; never probed counts as healthy."""
    return signals is None or signals.healthy is not False
