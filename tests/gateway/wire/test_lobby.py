"""Who may be in, and how many: in total, of one address, and under what a process may open."""

import asyncio
import os
import resource
import subprocess
import sys

import pytest

from gateway.settings import WireSettings
from gateway.wire.deadlines import Wheel
from gateway.wire.lobby import CONNECTIONS_MIN, Lobby


def lobby(**limits: int) -> Lobby:
    async def never(*_: object) -> None:
        raise AssertionError

    def refuse(_error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        raise AssertionError

    return Lobby(
        WireSettings(**limits),
        never,
        refuse,
        Wheel(1.0, asyncio.get_running_loop()),
        trusted=(),
        proxy_protocol=False,
        cors=None,
        on_refused=lambda _: None,
    )


async def test_an_address_has_its_own_cap_and_gives_back_what_it_took() -> None:
    room = lobby(connections_per_address_max=1)
    assert room.take("a")
    assert not room.take("a")
    assert room.take("b")
    room.give_back("a")
    assert room.take("a")
    room.give_back("a")
    room.give_back("b")
    assert not room.by_address


async def test_there_is_room_up_to_the_cap_and_none_while_draining() -> None:
    room = lobby(connections_max=1)
    assert room.has_room()
    room.members.add(1)
    assert not room.has_room()
    room.left(1)
    assert room.has_room()
    assert room.empty.is_set()
    room.draining = True
    assert not room.has_room()


@pytest.mark.parametrize(
    ("files", "most"), [(100, CONNECTIONS_MIN), (1024, 384), (1 << 20, 10_000)]
)
async def test_the_files_a_process_may_open_bound_its_connections(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert lobby().connections_max == most


def test_the_limit_on_files_is_raised_to_what_it_may_be() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = "from gateway.wire.lobby import descriptors; print(descriptors())"
    low = (
        f"import resource, os; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {min(hard, 4096)}));"
    )
    done = subprocess.run(
        [sys.executable, "-c", low + code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert int(done.stdout) == min(hard, 4096)
