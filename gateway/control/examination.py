"""The doctor's measurements: store, open files, and how long engines keep idle connections.

Taken when asked, all at once; then judged by ``gateway.control.diagnosis``. Not here: the route.
"""

import asyncio
import platform
import resource
import sys
import sysconfig
from collections.abc import Callable, Mapping

from gateway.control.diagnosis import Finding, Measured, diagnose
from gateway.control.keepalive import idle_closed_s
from gateway.settings import Settings
from gateway.snapshot import Snapshot
from gateway.wire.dial import parse_endpoint
from quotas.errors import StoreUnavailable
from quotas.ports import QuotaStore
from routing.signals import EndpointSignals
from routing.topology import Endpoint

#: An engine that keeps connections this much longer than we reuse them is no worry.
WATCH_MARGIN_S = 0.25
PINGS = 5


async def examine(
    snapshot: Snapshot,
    settings: Settings,
    signals: Callable[[], Mapping[int, EndpointSignals]],
    store: QuotaStore | None,
) -> list[Finding]:
    """Every finding; takes about ``wire.upstream_idle_s``. ``store`` None: nothing to measure."""
    endpoints = [each for pool in snapshot.pools.values() for each in pool.endpoints]
    watch_s = settings.wire.upstream_idle_s + WATCH_MARGIN_S
    (latency_s, store_error), idle = await asyncio.gather(
        _latency_s(store), asyncio.gather(*(_idle(each, watch_s) for each in endpoints))
    )
    measured = Measured(
        store_latency_s=latency_s,
        store_error=store_error,
        open_files_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        idle_closed_s={
            endpoint.id: closed_s
            for endpoint, closed_s in zip(endpoints, idle, strict=True)
            if closed_s is not None
        },
        python=platform.python_version(),
        python_optimised=_is_optimised(),
    )
    return diagnose(snapshot, settings, signals(), measured)


def _is_optimised() -> bool:
    """Distributions' interpreters are, though theirs do not say how they were built."""
    return sys.base_prefix == "/usr" or "--enable-optimizations" in (
        sysconfig.get_config_var("CONFIG_ARGS") or ""
    )


async def _latency_s(store: QuotaStore | None) -> tuple[float | None, str]:
    """The best of a few round trips: what the network and the store take, not our own scheduling."""
    if store is None:
        return None, ""
    try:
        return min([await store.ping() for _ in range(PINGS)]), ""
    except StoreUnavailable as error:
        return None, f"does not answer ({error or 'no connection'})"


async def _idle(endpoint: Endpoint, watch_s: float) -> float | None:
    return await idle_closed_s(parse_endpoint(endpoint.url), watch_s, ca_file=endpoint.ca_file)
