"""Limits as the scripts read them: one row a charge, by scope, packed once."""

import struct

import msgspec
import pytest

from quotas.calendar import Periods
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Level
from quotas.store.specs import Specs
from tests.support.limits import bucket, quota, slots

DAYS = Periods("d1", 0, 100, "d2", 200)


def columns(packed):
    unpacker = msgspec.msgpack.Decoder()
    read, rest = [], memoryview(packed)
    while rest:
        for end in range(1, len(rest) + 1):
            try:
                read.append(unpacker.decode(rest[:end]))
            except msgspec.DecodeError:
                continue
            rest = rest[end:]
            break
    return read


def test_rows_are_grouped_by_scope_and_order_leads_back():
    charges = (
        Charge(bucket("t1"), 5),
        Charge(slots("k1"), 1),
        Charge(quota("t1"), 7, DAYS),
    )

    spec = Specs().of(charges)

    assert spec.scopes == ("t1", "k1")
    assert (spec.rows, spec.order) == ([0, 2, 1], [0, 2, 1])
    assert struct.unpack("<3q", spec.amounts(charges)) == (5, 7, 1)
    shown = struct.pack("<6q", 1, 10, 2, 20, -3, 30)
    assert spec.levels(shown) == (Level(1, 10), Level(-3, 30), Level(2, 20))
    assert columns(spec.packed) == [
        ["t1", "k1"],
        [2, 3],
        ["minute:tokens", "day:tokens", "minute:concurrency"],
        ["bucket", "quota", "concurrency"],
        [1000, 1000, 2],
        [1, 0, 0],
        ["tokens", "tokens", "concurrency"],
        [0, 0, 0],
        ["d1", 0, 100, "d2", 200],
    ]


def test_same_limits_are_packed_once():
    specs, limit = Specs(), bucket()

    assert specs.of((Charge(limit, 1),)) is specs.of((Charge(limit, 9),))
    assert specs.of((Charge(limit, 1),)) is not specs.of((Charge(bucket(), 1),))


def test_lease_is_needed_where_concurrency_is_taken():
    spec = Specs().of((Charge(bucket(), 1), Charge(slots(), 1)))

    assert spec.holds((Charge(bucket(), 1), Charge(slots(), 1)))
    assert not spec.holds((Charge(bucket(), 1), Charge(slots(), 0)))


def test_quota_without_periods_is_refused():
    with pytest.raises(ReservationRefused):
        Specs().of((Charge(quota(), 1),))
