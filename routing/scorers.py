"""How good an endpoint is right now, as weighted scores in [0, 1]; higher is better.

After the default profile of the Gateway API's endpoint picker (queue 2, KV cache 2), with a local
ledger added: scraped counts are up to a second old, what this process sent is exact, and without
it every process would rush to the same idle endpoint between two scrapes.
"""

from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Endpoint

WEIGHT_ROOM = 2.0
WEIGHT_QUEUE = 2.0
WEIGHT_KV = 1.0
WEIGHTS = WEIGHT_ROOM + WEIGHT_QUEUE + WEIGHT_KV


def occupancy(endpoint: Endpoint, load: EndpointLoad) -> float:
    """Share of ``max_in_flight`` in use from here: 0 = idle, 1 = full."""
    return load.in_flight / endpoint.max_in_flight


def room(occupied: float, occupied_most: float) -> float:
    """1 = idle, 0 = as occupied as the most occupied candidate. All idle: 1.

    Relative, as a share of 256 would drown one request in the noise: the second of two requests
    must find the idle endpoint.
    """
    return 1.0 if occupied_most <= 0 else 1.0 - occupied / occupied_most


def queue(signals: EndpointSignals | None) -> float:
    """1 = nobody waits at the engine, 1/2 = one, 1/10 = nine; nobody knows: 1."""
    if signals is None or signals.waiting is None or signals.waiting <= 0:
        return 1.0
    return 1.0 / (1.0 + signals.waiting)


def kv_free(signals: EndpointSignals | None) -> float:
    """Free share of the engine's KV cache; nobody knows: 1."""
    if signals is None or signals.kv_used_fraction is None:
        return 1.0
    return min(1.0, max(0.0, 1.0 - signals.kv_used_fraction))


def score(occupied: float, occupied_most: float, signals: EndpointSignals | None) -> float:
    """The weighted mean, in [0, 1].

    Worked: 1 of 2 busy (room 0.5), one request waiting (0.5), cache half used (0.5) is 0.5.
    """
    return (
        WEIGHT_ROOM * room(occupied, occupied_most)
        + WEIGHT_QUEUE * queue(signals)
        + WEIGHT_KV * kv_free(signals)
    ) / WEIGHTS
