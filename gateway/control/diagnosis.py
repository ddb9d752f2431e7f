"""What will go wrong with what is configured: findings over values, each with what to change.

Pure: the snapshot, the settings, what probes saw, and a few numbers that were measured. Not here:
measuring them, and printing (``gateway.cli.doctor``).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from gateway.settings import Settings
from gateway.snapshot import Snapshot
from quotas.limits import Limit
from routing.signals import EndpointSignals
from routing.topology import Endpoint

Severity = Literal["ok", "warning", "error"]
#: The least a chat costs: one word in its template, and one token of answer.
REQUEST_TOKENS_MIN = 12
#: A reserve is one round trip before each request; beyond this it is felt.
STORE_LATENCY_S_MAX = 0.010
#: Two sockets a connection (client and engine), and some for the rest.
FILES_PER_CONNECTION = 2
FILES_BESIDE = 256


class Finding(msgspec.Struct, frozen=True):
    """``subject`` is what it is about: a limit's scope, a model, an endpoint's URL."""

    check: str
    severity: Severity
    subject: str
    message: str


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """None: not measured. ``idle_closed_s``: endpoint id -> when it closed an idle connection.
    ``python``: the interpreter's version; ``python_optimised``: built with profile-guided optimisation.
    """

    store_latency_s: float | None = None
    store_error: str = ""
    open_files_max: int = 0
    idle_closed_s: dict[int, float] = {}
    python: str = ""
    python_optimised: bool = True


def diagnose(
    snapshot: Snapshot,
    settings: Settings,
    signals: Mapping[int, EndpointSignals],
    measured: Measured,
) -> list[Finding]:
    """Every finding, the fine ones too."""
    return [
        *_store(measured),
        *_files(settings, measured),
        *_python(measured),
        *_endpoints(snapshot, settings, signals, measured),
        *_models(snapshot),
        *_limits(snapshot),
    ]


def _store(measured: Measured) -> Iterable[Finding]:
    latency_s = measured.store_latency_s
    if measured.store_error:
        yield Finding("store", "error", "store", f"{measured.store_error}; see TF_REDIS_URL")
    elif latency_s is not None:
        slow = latency_s > STORE_LATENCY_S_MAX
        advice = "; every request waits for it once: bring it nearer" if slow else ""
        yield Finding(
            "store",
            "warning" if slow else "ok",
            "store",
            f"answers in {latency_s * 1000:.2f} ms{advice}",
        )


def _files(settings: Settings, measured: Measured) -> Iterable[Finding]:
    if not measured.open_files_max:
        return
    needed = settings.wire.connections_max * FILES_PER_CONNECTION + FILES_BESIDE
    if measured.open_files_max < needed:
        yield Finding(
            "files",
            "warning",
            "process",
            f"{measured.open_files_max} open files allowed, {needed} needed for "
            f"{settings.wire.connections_max} connections; raise it (ulimit -n, LimitNOFILE) or "
            "lower TF_WIRE_CONNECTIONS_MAX",
        )
    else:
        yield Finding("files", "ok", "process", f"{measured.open_files_max} open files allowed")


def _python(measured: Measured) -> Iterable[Finding]:
    if measured.python and measured.python_optimised:
        yield Finding("python", "ok", "interpreter", measured.python)
    elif measured.python:
        yield Finding(
            "python",
            "warning",
            "interpreter",
            f"{measured.python} was built without profile-guided optimisation and takes a quarter more "
            "for every request; build .venv from the distribution's (make PYTHON=/usr/bin/python3)",
        )


def _endpoints(
    snapshot: Snapshot,
    settings: Settings,
    signals: Mapping[int, EndpointSignals],
    measured: Measured,
) -> Iterable[Finding]:
    for pool in snapshot.pools.values():
        if not pool.endpoints:
            yield Finding("endpoints", "error", f"pool {pool.name}", "has no endpoint")
        for endpoint in pool.endpoints:
            yield _reachable(endpoint, signals.get(endpoint.id))
            closed_s = measured.idle_closed_s.get(endpoint.id)
            if closed_s is not None and closed_s <= settings.wire.upstream_idle_s:
                yield Finding(
                    "keep-alive",
                    "warning",
                    endpoint.url,
                    f"closes idle connections after {closed_s:.1f} s, we reuse them for "
                    f"{settings.wire.upstream_idle_s:g} s: requests will meet closed ones; set "
                    f"TF_WIRE_UPSTREAM_IDLE_S below {closed_s:.1f}, or raise the engine's",
                )


def _reachable(endpoint: Endpoint, seen: EndpointSignals | None) -> Finding:
    if endpoint.draining:
        return Finding("endpoints", "warning", endpoint.url, "is draining: it gets no new request")
    if seen is None or seen.healthy is None:
        return Finding("endpoints", "warning", endpoint.url, "was not probed yet")
    if not seen.healthy:
        return Finding(
            "endpoints",
            "error",
            endpoint.url,
            "does not answer its probe; is the engine up, the URL right, its credential there?",
        )
    if seen.usage == "none":
        return Finding(
            "endpoints",
            "warning",
            endpoint.url,
            "reports no usage in streams: their tokens are estimated",
        )
    return Finding("endpoints", "ok", endpoint.url, "answers its probe")


def _models(snapshot: Snapshot) -> Iterable[Finding]:
    for model in snapshot.models.values():
        subject = f"model {model.name}"
        if model.pool_id not in snapshot.pools:
            yield Finding("models", "error", subject, "its pool is gone; apply one")
        if model.price is None:
            yield Finding(
                "prices", "warning", subject, "has no price: its usage is recorded, not billed"
            )


def _limits(snapshot: Snapshot) -> Iterable[Finding]:
    limits = [
        *(limit for tenant in snapshot.tenants.values() for limit in tenant.limits),
        *(limit for project in snapshot.projects.values() for limit in project.limits),
        *(limit for key in snapshot.keys.values() for limit in key.limits),
    ]
    for limit in limits:
        reason = never_admits(limit)
        if reason:
            yield Finding("limits", "error", limit.scope_name, reason)


def never_admits(limit: Limit) -> str:
    """Why no request ever passes this limit; empty when one may."""
    if limit.algorithm == "concurrency":
        return "0 concurrent requests: nothing is ever admitted" if limit.capacity < 1 else ""
    if limit.algorithm == "balance":
        return ""  # a credit line of 0 is prepaid: what is credited is admitted
    if limit.capacity < 1:
        return f"a burst of {limit.capacity} {limit.dimension}: nothing is ever admitted"
    if limit.dimension == "tokens" and limit.capacity < REQUEST_TOKENS_MIN:
        return (
            f"at most {limit.capacity} tokens at once; the smallest request reserves some "
            f"{REQUEST_TOKENS_MIN}: nothing is ever admitted; raise tokens_per_minute or its burst"
        )
    if limit.algorithm == "bucket" and limit.per_minute < 1:
        return f"no {limit.dimension} flow back: once {limit.capacity} are used, none is admitted"
    return ""
