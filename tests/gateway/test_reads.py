"""The lane of look-ups: few at once, fewer for one key, two seconds at most, never an answer lost."""

import asyncio

import msgspec
import pytest

from gateway.contract.errors import StoreAway, TooManyReads
from gateway.link.client import LinkAway
from gateway.link.messages import Read, ReadAnswer
from gateway.reads import READS_MAX, READS_PER_KEY_MAX, ReadLane
from gateway.snapshot import KeyDoc, Principal, ProjectDoc, TenantDoc


def principal(key_id: int) -> Principal:
    key = KeyDoc(
        id=key_id, project_id=2, name="k", path="t/p/k", secrets=(), models=None, limits=()
    )
    return Principal(
        key,
        ProjectDoc(id=2, tenant_id=1, name="p", limits=()),
        TenantDoc(id=1, name="t", limits=()),
    )


class Control:
    """Answers when told to. ``most``: questions it had at once."""

    def __init__(self) -> None:
        self.asked: list[Read] = []
        self.gate = asyncio.Event()
        self.waiting = self.most = 0

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        assert kind == "read"
        self.asked.append(msgspec.msgpack.decode(body, type=Read))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return msgspec.msgpack.encode(ReadAnswer(200, b"{}"))


async def test_a_question_carries_who_asks_and_the_first_of_each_value() -> None:
    control = Control()
    control.gate.set()
    lane = ReadLane(control.ask)
    found = await lane.read(principal(3), "/v1/generation", "id=a%20b&id=c&empty=")
    assert found == ReadAnswer(200, b"{}")
    assert control.asked == [Read("/v1/generation", {"id": "a b", "empty": ""}, 1, 2, 3)]


async def test_one_key_takes_a_part_of_the_lane_and_all_keys_no_more_than_the_lane() -> None:
    control = Control()
    lane = ReadLane(control.ask)
    reads = [
        asyncio.create_task(lane.read(principal(key), "/v1/generation", ""))
        for key in range(1, 5)
        for _ in range(READS_PER_KEY_MAX)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyReads):
        await lane.read(principal(1), "/v1/generation", "")
    control.gate.set()
    assert {found.status for found in await asyncio.gather(*reads)} == {200}
    assert control.most == READS_MAX
    await lane.read(principal(1), "/v1/generation", "")  # its places are free again


async def test_control_that_is_away_or_slow_is_a_503_within_the_bound() -> None:
    async def away(kind: str, body: bytes, timeout_s: float) -> bytes:
        raise LinkAway("control is away")

    with pytest.raises(StoreAway):
        await ReadLane(away).read(principal(1), "/v1/generation", "")
    lane = ReadLane(Control().ask, timeout_s=0.05)
    reads = [lane.read(principal(key), "/v1/generation", "") for key in range(READS_MAX + 2)]
    async with asyncio.timeout(1):
        ended = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(each) for each in ended} == {StoreAway}
