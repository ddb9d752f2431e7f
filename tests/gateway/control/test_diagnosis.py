"""The doctor's findings: what will go wrong is named with what to change; the rest is fine."""

import pytest

from gateway.control.diagnosis import Finding, Measured, diagnose, never_admits
from gateway.settings import Settings, WireSettings
from gateway.snapshot import ModelDoc, Move, Snapshot, TenantDoc, encode_doc
from quotas.limits import Limit
from quotas.pricing import Price
from routing.signals import EndpointSignals
from routing.topology import Endpoint, Pool

PRICE = Price(id=1, version=1, currency="USD", nano={"input": 1})


def limit(dimension: str, capacity: int, per_minute: int) -> Limit:
    kinds = {"concurrency": "concurrency", "balance": "money", "quota": "tokens"}
    algorithm = dimension if dimension in kinds else "bucket"
    counted = kinds.get(dimension, dimension)
    return Limit("t1", "tenant acme", counted, algorithm, capacity, per_minute, 1)


def snapshot(*limits: Limit, price: Price | None = PRICE, pool_id: int = 1) -> Snapshot:
    made = Snapshot()
    endpoint = Endpoint(id=7, pool_id=1, url="http://gpu:8000")
    docs = {
        "pool": Pool(id=1, name="p", endpoints=(endpoint,)),
        "model": ModelDoc(id=1, name="m", upstream="m", pool_id=pool_id, price=price),
        "tenant": TenantDoc(id=1, name="acme", limits=limits),
    }
    made.apply(1, [Move(kind, 1, encode_doc(doc)) for kind, doc in docs.items()])
    return made


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(f.check, f.severity, f.subject) for f in findings if f.severity != "ok"]


WELL = {7: EndpointSignals(endpoint_id=7, healthy=True, usage="continuous")}


def test_a_healthy_gateway_has_nothing_but_fine_findings() -> None:
    measured = Measured(store_latency_s=0.0004, open_files_max=65_536, idle_closed_s={7: 5.0})
    assert bad(diagnose(snapshot(limit("tokens", 1000, 1000)), Settings(), WELL, measured)) == []


def test_an_interpreter_that_costs_more_is_named() -> None:
    slow = Measured(python="3.11.7", python_optimised=False)
    assert bad(diagnose(snapshot(), Settings(), WELL, slow)) == [
        ("python", "warning", "interpreter")
    ]
    assert bad(diagnose(snapshot(), Settings(), WELL, Measured(python="3.11.2"))) == []


@pytest.mark.parametrize(
    ("signals", "severity"),
    [
        ({}, "warning"),
        ({7: EndpointSignals(endpoint_id=7)}, "warning"),
        ({7: EndpointSignals(endpoint_id=7, healthy=False)}, "error"),
        ({7: EndpointSignals(endpoint_id=7, healthy=True, usage="none")}, "warning"),
    ],
)
def test_an_endpoint_is_named(signals: dict[int, EndpointSignals], severity: str) -> None:
    findings = bad(diagnose(snapshot(), Settings(), signals, Measured()))
    assert findings == [("endpoints", severity, "http://gpu:8000")]


def test_an_engine_that_closes_before_we_stop_reusing_is_named() -> None:
    settings = Settings(wire=WireSettings(upstream_idle_s=6.0))
    (finding,) = [
        f
        for f in diagnose(snapshot(), settings, WELL, Measured(idle_closed_s={7: 5.0}))
        if f.severity != "ok"
    ]
    assert finding.check == "keep-alive"
    assert "TF_WIRE_UPSTREAM_IDLE_S below 5.0" in finding.message


def test_models_without_price_or_pool_are_named() -> None:
    findings = bad(diagnose(snapshot(price=None, pool_id=9), Settings(), WELL, Measured()))
    assert findings == [("models", "error", "model m"), ("prices", "warning", "model m")]


def test_store_and_files_are_judged() -> None:
    measured = Measured(store_latency_s=0.2, open_files_max=1024)
    assert bad(diagnose(snapshot(), Settings(), WELL, measured)) == [
        ("store", "warning", "store"),
        ("files", "warning", "process"),
    ]
    away = Measured(store_error="refused the connection")
    assert bad(diagnose(snapshot(), Settings(), WELL, away)) == [("store", "error", "store")]


@pytest.mark.parametrize(
    ("dimension", "capacity", "per_minute", "never"),
    [
        ("concurrency", 0, 0, True),
        ("concurrency", 1, 0, False),
        ("requests", 0, 60, True),
        ("requests", 1, 1, False),
        ("requests", 5, 0, True),
        ("tokens", 11, 11, True),
        ("tokens", 12, 1, False),
        ("balance", 0, 0, False),
        ("quota", 1_000, 0, False),
        ("quota", 0, 0, True),
    ],
)
def test_limits_that_can_never_admit(
    dimension: str, capacity: int, per_minute: int, never: bool
) -> None:
    one = limit(dimension, capacity, per_minute)
    assert bool(never_admits(one)) is never
    found = bad(diagnose(snapshot(one), Settings(), WELL, Measured()))
    assert found == ([("limits", "error", "tenant acme")] if never else [])
