"""The deadlines of one attempt, on a wheel that the test turns."""

import asyncio

import pytest

from gateway.wire.deadlines import Wheel
from gateway.wire.watch import Watch

#: A deadline fires up to two ticks late, and never early.
LATE = 2


class Turned:
    """A watch on a wheel of one-second ticks, with what it told and when."""

    def __init__(self, *, silence_s=None, first_event_s=10, gap_s=5, total_s=60):
        self.wheel = Wheel(1.0, asyncio.get_running_loop())
        self.now_s = 0
        self.told = []
        self.watch = Watch(
            self.wheel,
            first_event_s=first_event_s,
            gap_s=gap_s,
            total_s=total_s,
            silence_s=silence_s,
            on_late=lambda committed: self.told.append((self.now_s, "late", committed)),
            on_silence=lambda: self.told.append((self.now_s, "silence")),
        )

    def turn(self, seconds, every=0):
        for _ in range(seconds):
            self.now_s += 1
            self.wheel.advance()
            if every and self.now_s % every == 0:
                self.watch.chunk()
        return self.told


def around(told, wanted_s, *what):
    return told[1:] == what and wanted_s <= told[0] <= wanted_s + LATE


async def test_no_first_event_is_late_once_and_before_commit():
    [told] = Turned().turn(200)

    assert around(told, 10, "late", False)


async def test_a_gap_between_chunks_is_late_after_commit():
    turned = Turned()
    turned.turn(8)
    turned.watch.chunk()
    [told] = turned.turn(200)

    assert around(told, 13, "late", True)


async def test_chunks_in_time_keep_it_until_the_total():
    [told] = Turned(gap_s=5).turn(200, every=3)

    assert around(told, 60, "late", True)


async def test_silence_is_told_again_and_again_until_a_chunk():
    turned = Turned(silence_s=3, first_event_s=30)
    turned.turn(10)
    assert [each[1] for each in turned.told] == ["silence"] * 2
    turned.told.clear()
    turned.turn(12, every=2)

    assert turned.told == []


async def test_cancelled_it_tells_nothing_more():
    turned = Turned(silence_s=3)
    turned.watch.cancel()

    assert turned.turn(200) == []


@pytest.mark.parametrize("first", [2, 9])
async def test_a_first_event_at_the_last_moment_is_in_time(first):
    turned = Turned(gap_s=50)
    turned.turn(first)
    turned.watch.chunk()

    assert turned.turn(40) == []
