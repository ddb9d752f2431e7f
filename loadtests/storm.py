"""A client that leaves before the first frame, for ever: how much of the engine does it get?

It sends a request, waits less than the engine needs to begin, closes the connection and begins again,
many at once. Nothing was counted, so what each request reserved stays charged (docs/billing.md), and the
key's own limits hold it. The same storm by a key without limits shows what an unheld client would get.
Used by ``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import json
import random
import time
from urllib.parse import urlsplit

import msgspec

from gateway.demo.engine import DemoEngine
from tests.support.gateway import Gateway, document

CLIENTS = 16
#: The engine's silence before the first frame, and how long a client stays at most.
SILENCE_S = 0.3
STAYS_S = 0.15
CAP = 200
#: The key's tokens a minute, all of them at once at first.
TOKENS = 6_000
WORD = "storm"


class Storm(msgspec.Struct):
    """``sent``: requests of the client; ``reached``: those that an engine saw; ``took_s``: how long
    it went on.
    """

    sent: int = 0
    reached: int = 0
    took_s: float = 0.0

    @property
    def allowed(self) -> float:
        """Requests that the limit of tokens can have admitted: each reserves its cap at least."""
        return (TOKENS + TOKENS / 60 * self.took_s) / CAP


def declared(engine_url: str) -> dict:
    """A held key, one without limits, and one of another tenant."""
    wanted = document(engine_url, limits={"tokens_per_minute": TOKENS})
    keys = wanted["tenants"][0]["projects"][0]["keys"]
    keys.append({"name": "free"})
    other = {"name": "calm", "projects": [{"name": "chat", "keys": [{"name": "ci"}]}]}
    wanted["tenants"].append(other)
    return wanted


async def leave(gateway: Gateway, secret: str, chance: random.Random, storm: Storm) -> None:
    """One request, left before its answer; a refusal comes sooner, and is not obeyed."""
    parts = urlsplit(gateway.base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps(
        {
            "model": "llama",
            "messages": [{"role": "user", "content": WORD}],
            "max_tokens": CAP,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    storm.sent += 1
    try:
        async with asyncio.timeout(chance.uniform(0.02, STAYS_S)):
            await reader.read(1)
            await asyncio.sleep(0.02)  # refused: it does not wait as long as it is told
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()


async def rage(
    gateway: Gateway, engine: DemoEngine, secret: str, seconds: float, *, seed: int = 1
) -> Storm:
    """Many of them for so long; counted at the engine."""
    storm, before = Storm(), len(engine.log)
    until_s = time.monotonic() + seconds
    began_s = time.monotonic()

    async def one(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        while time.monotonic() < until_s:
            await leave(gateway, secret, chance, storm)

    await asyncio.gather(*map(one, range(CLIENTS)))
    storm.took_s = time.monotonic() - began_s
    await asyncio.sleep(SILENCE_S)
    storm.reached = sum(map(seen, engine.log[before:]))
    return storm


def seen(entry) -> bool:
    return WORD.encode() in entry.body
