"""Topology is a picture: frozen, and the same after a trip over the link."""

import msgspec
import pytest

from routing.topology import Pool
from tests.support.topology import endpoint, pool


def test_a_pool_survives_the_wire() -> None:
    made = pool(endpoint(1, dialect="nim", draining=True), endpoint(2))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Pool) == made


def test_an_endpoint_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        endpoint(1).draining = True
