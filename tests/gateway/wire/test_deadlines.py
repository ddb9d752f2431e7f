"""Deadlines fire late by two ticks at most, never early, and hold nothing once cancelled."""

import asyncio
import gc
import time
import weakref

from gateway.wire.deadlines import SLOTS, Wheel


def turned(wheel: Wheel, fired: list[int], most: int) -> int:
    for tick in range(1, most):
        wheel.advance()
        if fired:
            return tick
    return 0


async def test_a_deadline_fires_within_two_ticks_and_once() -> None:
    wheel = Wheel(1.0, asyncio.get_running_loop())
    fired: list[int] = []
    wheel.add(3.0, lambda: fired.append(1))
    assert 3 < turned(wheel, fired, 10) <= 5
    for _ in range(SLOTS + 1):
        wheel.advance()
    assert fired == [1]


async def test_a_moved_deadline_fires_at_its_last_due_time() -> None:
    wheel = Wheel(1.0, asyncio.get_running_loop())
    later: list[int] = []
    wheel.add(3.0, lambda: later.append(1)).move(20.0)
    assert 20 < turned(wheel, later, 30) <= 22
    sooner: list[int] = []
    wheel.add(20.0, lambda: sooner.append(1)).move(3.0)
    assert 3 < turned(wheel, sooner, 30) <= 5


async def test_a_deadline_beyond_one_revolution_waits() -> None:
    wheel = Wheel(1.0, asyncio.get_running_loop())
    fired: list[int] = []
    wheel.add(SLOTS * 2.5, lambda: fired.append(1))
    assert turned(wheel, fired, SLOTS * 3) > SLOTS * 2.5


async def test_a_cancelled_deadline_holds_nothing() -> None:
    class Held:
        def fire(self) -> None:
            raise AssertionError

    wheel = Wheel(1.0, asyncio.get_running_loop())
    held = Held()
    deadline = wheel.add(3.0, held.fire)
    gone = weakref.ref(held)
    deadline.cancel()
    deadline.cancel()
    del held
    gc.collect()
    assert gone() is None
    for _ in range(10):
        wheel.advance()


async def test_a_callback_may_cancel_its_neighbour_and_a_bug_stops_nobody() -> None:
    wheel = Wheel(1.0, asyncio.get_running_loop())
    fired: list[str] = []
    pair: list = []

    def first_of_two(name: str, other: int) -> None:
        fired.append(name)
        pair[other].cancel()

    pair += [wheel.add(1.0, lambda: first_of_two("a", 1))]
    pair += [wheel.add(1.0, lambda: first_of_two("b", 0))]
    wheel.add(1.0, lambda: 1 // 0)
    wheel.add(1.0, lambda: fired.append("c"))
    for _ in range(5):
        wheel.advance()
    assert len(fired) == 2
    assert "c" in fired


async def test_the_wheel_turns_with_the_loop() -> None:
    wheel = Wheel(0.01, asyncio.get_running_loop())
    wheel.start()
    fired = asyncio.Event()
    began_s = asyncio.get_running_loop().time()
    wheel.add(0.05, fired.set)
    await asyncio.wait_for(fired.wait(), 2)
    assert asyncio.get_running_loop().time() - began_s >= 0.05
    wheel.stop()


async def test_a_deadline_set_while_the_loop_lagged_is_not_early() -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(0.01, loop)
    wheel.start()
    await asyncio.sleep(0.03)
    time.sleep(0.2)  # noqa: ASYNC251 -- the lag itself is the subject
    fired = asyncio.Event()
    began_s = loop.time()
    wheel.add(0.1, fired.set)
    await asyncio.wait_for(fired.wait(), 2)
    assert loop.time() - began_s >= 0.1
    wheel.stop()
