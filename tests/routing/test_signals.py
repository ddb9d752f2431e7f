"""Signals tell "unknown" from zero."""

import msgspec

from routing.signals import EndpointLoad, EndpointSignals
from tests.support.topology import signals


def test_unknown_signals_are_none_and_survive_the_wire() -> None:
    made = signals(4)
    assert (made.healthy, made.waiting, made.kv_used_fraction) == (None, None, None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=EndpointSignals) == made


def test_a_new_load_is_idle_and_in_nobodys_bad_books() -> None:
    load = EndpointLoad()
    assert (load.in_flight, load.consecutive_failures, load.ejections) == (0, 0, 0)
    assert load.back_off_until_s == load.ejected_until_s == 0.0
