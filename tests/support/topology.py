"""Builders of pools, signals and loads, with the defaults a test does not care about."""

from typing import Any

from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Endpoint, Pool


def endpoint(endpoint_id: int, **fields: Any) -> Endpoint:
    fields.setdefault("url", f"http://127.0.0.1:{9000 + endpoint_id}")
    return Endpoint(id=endpoint_id, pool_id=1, **fields)


def pool(*endpoints: Endpoint) -> Pool:
    return Pool(id=1, name="h100-fra", endpoints=endpoints)


def signals(endpoint_id: int, **fields: Any) -> EndpointSignals:
    return EndpointSignals(endpoint_id=endpoint_id, **fields)


def load(**fields: float) -> EndpointLoad:
    made = EndpointLoad()
    for name, value in fields.items():
        setattr(made, name, value)
    return made
