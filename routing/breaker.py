"""What the end of an attempt says of its endpoint: well, failing, or merely busy.

Passive ejection after Envoy's outlier detection (5 in a row, longer each time). Mutates the load
handed to it; frozen copies would cost more than the decision. That ejection never empties a pool is
``routing.filters.is_panic``'s promise, since one endpoint cannot see its siblings.

    event    | consecutive_failures     | ejections    | out until
    sent     | unchanged                | unchanged    | on probation: now + TRIAL_S
    success  | 0                        | one less     | unchanged; the trial is over
    failure  | +1; at 5: ejected, to 4  | +1 if it was | now + EJECTION_S[ejections]
    busy     | 0: it answered           | unchanged    | backed off for what it asks
"""

from routing.signals import EndpointLoad

EJECT_AFTER = 5
#: 5 s x 2^n, at most 300 s (Envoy: 30 s x n, at most 300 s; engines restart faster than hosts).
EJECTION_S = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
#: Back from an ejection, one request at a time tries the endpoint: the next goes when it succeeded,
#: or when it has taken this long. A trial that nobody ends so frees itself.
TRIAL_S = 2.0
#: A 429 or 503 without Retry-After: long enough to try a sibling, short enough not to idle a GPU.
BUSY_S = 0.5
#: An engine's Retry-After is believed within these bounds.
BUSY_MIN_S = 0.1
BUSY_MAX_S = 60.0


def on_sent(load: EndpointLoad, now_s: float) -> None:
    """A request goes there. The first one after an ejection is its trial."""
    if load.ejections and load.consecutive_failures == EJECT_AFTER - 1:
        load.trial_until_s = now_s + TRIAL_S


def on_success(load: EndpointLoad) -> None:
    """The engine answered, a 4xx of its own included. Streams from before an ejection do not end
    it; they shorten the next one.
    """
    load.consecutive_failures = 0
    load.trial_until_s = 0.0
    if load.ejections:
        load.ejections -= 1


def on_failure(load: EndpointLoad, now_s: float) -> bool:
    """It did not connect, broke off, was silent, or said 5xx. True when this ejected it.

    Failures of requests that were under way when it was ejected say nothing new. Back from an
    ejection it is on probation: the next failure ejects it again, for longer.
    """
    if load.ejected_until_s > now_s:
        return False
    load.consecutive_failures += 1
    if load.consecutive_failures < EJECT_AFTER:
        return False
    load.consecutive_failures = EJECT_AFTER - 1
    load.trial_until_s = 0.0
    load.ejected_until_s = now_s + EJECTION_S[min(load.ejections, len(EJECTION_S) - 1)]
    load.ejections += 1
    return True


def on_busy(load: EndpointLoad, now_s: float, retry_after_s: float | None) -> None:
    """The engine said 429 or 503: nothing new goes there for as long as it asks."""
    load.consecutive_failures = 0
    load.trial_until_s = 0.0
    wait_s = BUSY_S if retry_after_s is None else retry_after_s
    wait_s = max(BUSY_MIN_S, min(BUSY_MAX_S, wait_s))
    load.back_off_until_s = max(load.back_off_until_s, now_s + wait_s)
