"""A record's bytes: what was written is read again, whoever wrote it."""

import msgspec
import pytest

from quotas.limits import Charge, Limit
from quotas.ports import Settlement
from quotas.record import UsageRecord, decode, encode, request_id_of
from tests.support.first_release import payload_of_first
from tests.support.records import value

CHARGED = (Charge(Limit("t1", "tenant acme", "tokens", "bucket", 100, 100, 1), 13),)
SETTLED = value(7, epoch="e", charged=CHARGED)
RECORDS = [value(7), SETTLED, value(7, epoch="", charged=CHARGED), value(7, reserved=True, cap=9)]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_as_it_was_written(record: UsageRecord) -> None:
    payload = encode(record)
    assert decode(payload) == record
    assert request_id_of(payload) == record.request_id


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_of_the_first_release_is_read_as_well(record: UsageRecord) -> None:
    payload = payload_of_first(record)
    assert decode(payload) == msgspec.structs.replace(record, v=1)
    assert request_id_of(payload) == record.request_id


def test_a_field_added_at_the_end_by_a_newer_version_is_no_hindrance() -> None:
    fields = msgspec.msgpack.decode(encode(SETTLED))
    assert decode(msgspec.msgpack.encode([*fields, "new"])) == SETTLED


def test_what_the_store_is_told_is_made_of_what_the_record_has() -> None:
    name = SETTLED.request_id
    assert SETTLED.settlement == Settlement("t1", name, "e", CHARGED, SETTLED.billed)
    outside = value(7, epoch="", charged=CHARGED).settlement
    assert outside is not None
    assert outside.reservation_id == name + "+", "admitted without the store: an id of its own"
    assert value(7).settlement is None


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\x90", b"\xc1", b"\xdc\x00"])
def test_anything_else_is_an_error(payload: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(payload)
    with pytest.raises(msgspec.MsgspecError):
        request_id_of(payload)
