"""The leash: launch down, events up, and the end of file that is the other side's death."""

import asyncio
import socket

import msgspec
import pytest

from gateway.leash import Event, Launch, Leash
from gateway.settings import Settings

LAUNCH = Launch(
    role="data",
    settings=Settings(data_dir="/tmp/x"),
    slot=0,
    listen_fd=5,
    lock_fd=6,
    link_path="/tmp/x/link.sock",
    store_url=None,
    store_name="memory",
    pepper="p",
    base_url="http://127.0.0.1:1/v1",
    control_url="http://127.0.0.1:2",
)


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair()
    leash = Leash(theirs.detach())
    yield ours, leash
    ours.close()
    leash.close()
    await asyncio.sleep(0)


async def test_launch_line_arrives_whole(pair):
    ours, leash = pair
    ours.sendall(msgspec.json.encode(LAUNCH) + b"\n")

    assert await leash.open() == LAUNCH


async def test_supervisor_gone_before_launch_is_an_end_of_file(pair):
    ours, leash = pair
    ours.close()

    with pytest.raises(EOFError):
        await leash.open()


async def test_drain_then_death_are_told_in_order(pair):
    ours, leash = pair
    ours.sendall(msgspec.json.encode(LAUNCH) + b"\n")
    await leash.open()
    seen = []
    watching = asyncio.ensure_future(
        leash.watch(lambda: seen.append("drain"), lambda: seen.append("parted"))
    )
    ours.sendall(msgspec.json.encode(Event(event="drain")) + b"\n")
    ours.close()
    await watching

    assert seen == ["drain", "parted"]


async def test_supervisor_that_dies_before_it_read_what_it_was_told_is_gone_as_well(pair):
    ours, leash = pair
    ours.sendall(msgspec.json.encode(LAUNCH) + b"\n")
    await leash.open()
    leash.tell(Event(event="version", detail="7"))
    await asyncio.sleep(0.01)
    seen = []
    ours.close()  # with that unread, it is a reset and no end of file
    await leash.watch(lambda: seen.append("drain"), lambda: seen.append("parted"))

    assert seen == ["parted"]


async def test_events_go_up_as_lines(pair):
    ours, leash = pair
    ours.sendall(msgspec.json.encode(LAUNCH) + b"\n")
    await leash.open()
    leash.tell(Event(event="ready", detail="7"))
    await asyncio.sleep(0.01)

    assert msgspec.json.decode(ours.recv(1000), type=Event) == Event(event="ready", detail="7")
