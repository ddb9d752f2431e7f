"""A child on its leash: heard, told, waited for, and never outliving us."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.children import Child, ended, ending
from tests.support.until import until

READY = 'print(\'{"event": "ready", "url": "http://x"}\', flush=True)'


Guest = Callable[..., Child]


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A guest that runs these lines; its leash is its standard output."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*lines: str) -> Child:
        (tmp_path / "small_guest.py").write_text("import os, time\n" + "\n".join(lines))
        return Child("guest", lambda fd: ["small_guest"], b"", ())

    return make


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit status 0"), (-9, "SIGKILL"), (-99, "signal 99")]
)
def test_an_ending_is_told_in_words(code: int, words: str) -> None:
    assert ending(code) == words


async def test_a_guest_says_ready_on_its_standard_output(guest: Guest) -> None:
    child = guest(READY, "time.sleep(60)")
    child.start()
    await asyncio.wait_for(child.ready.wait(), 5)
    assert child.ready_detail == "http://x"
    child.kill()
    assert await child.wait() == -9


async def test_a_child_hears_what_it_is_told(guest: Guest, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    child = guest(READY, f"open({str(heard)!r}, 'wb').write(os.read(1, 100)); os._exit(0)")
    child.start()
    await asyncio.wait_for(child.ready.wait(), 5)
    child.tell("drain")
    assert await child.wait(5) == 0
    assert json.loads(heard.read_text())["event"] == "drain"


async def test_a_child_that_does_not_stop_is_killed(guest: Guest) -> None:
    child = guest(READY, "time.sleep(60)")
    child.start()
    await asyncio.wait_for(child.ready.wait(), 5)
    child.tell("drain")
    assert await child.wait(0.05) == -9


async def test_versions_told_are_kept_and_nonsense_is_not(guest: Guest) -> None:
    child = guest(
        'print(\'{"event": "version", "detail": "12"}\\nnonsense\', flush=True)',
        READY,
    )
    told: list[int] = []
    child.on_event = lambda: told.append(child.version)
    child.start()
    await until(child.ready.is_set, timeout_s=5)
    assert told[0] == 12
    assert child.process is not None
    await ended(child.process)
    await child.wait()


async def test_a_child_is_restarted_until_we_stop(guest: Guest) -> None:
    child = guest(READY, "os._exit(3)")
    starts = 0
    stopping = False

    def on_event() -> None:
        nonlocal starts, stopping
        starts += 1
        stopping = starts == 2

    child.on_event = on_event
    child.start()
    await asyncio.wait_for(child.keep(lambda: stopping), 5)
    assert starts == 2
