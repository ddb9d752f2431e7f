"""Waiting for a condition, in tests: no fixed sleeps, and an end when it never comes."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 3.0) -> None:
    """Return when ``condition()`` is true; raises ``TimeoutError``."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """The same without a loop."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.01)
