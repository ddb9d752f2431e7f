"""The store stops in the middle of a gateway's work, stopped or killed: what goes on, what is refused.

A whole gateway of two data processes over a Valkey of its own sells to two tenants: one whose key has
a rate that may be shared, one who paid ahead. While the store is away the first is served at its rate
and the second refused; then money is counted anew and spent to the end. Counted by the clients that
asked, by the clock from the start of the test, and by the records. Used by ``loadtests/limits.py`` and,
in a short form, by the suite.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from gateway.demo.engine import DemoEngine
from tests.support.gateway import Gateway
from tests.support.valkey import Valkey, serving

How = Literal["stopped", "killed"]
PER_MINUTE = 3_000
BURST = 60
PROCESSES = 2
CLIENTS = 8
#: Between two requests of a client of the rate: together they ask for more than it allows.
PAUSE_S = 0.05
#: A request has 10 tokens of prompt and 10 of answer, a cent each thousand.
PRICE = {"input": "1000", "output": "1000"}
CREDIT = "3"
NANO = 10**9
SPENDERS = 16
#: Before the store goes and after it is back, in seconds.
CALM_S = 1.0
#: What is promised; recovery is from the moment that the store answers again.
MOST_P99_S, MOST_RECOVERY_S = 0.25, 5.0


class Outcome(msgspec.Struct):
    """``asked`` and ``admitted`` of the key with the rate, ``allowed`` by burst + 1.1 x rate x T.

    ``during``: how many were admitted while the store was away. ``paid_during``: answers 200 to who
    paid ahead, then. Money in nano-units: what was paid in, and what the records bill.
    """

    asked: int = 0
    admitted: int = 0
    allowed: float = 0.0
    during: int = 0
    paid_during: int = 0
    p99_s: float = 0.0
    slowest_s: float = 0.0
    recovered_s: float = 0.0
    paid_in: int = 0
    spent: int = 0
    codes: dict[int, int] = {}

    def wrong(self, most_p99_s: float = MOST_P99_S) -> list[str]:
        """Promises that were not kept."""
        found = []
        if self.admitted > self.allowed:
            found.append(f"{self.admitted} admitted of {self.allowed:.0f}")
        if not self.during:
            found.append("nobody was served while the store was away")
        if self.paid_during:
            found.append(f"{self.paid_during} were served on money that nobody knew")
        if self.p99_s > most_p99_s:
            found.append(f"p99 {self.p99_s * 1000:.0f} ms")
        if self.recovered_s > MOST_RECOVERY_S:
            found.append(f"money was back after {self.recovered_s:.1f} s")
        if not 0.9 * self.paid_in < self.spent <= self.paid_in:
            found.append(f"{self.spent} spent of {self.paid_in}")
        if set(self.codes) - {200, 429}:
            found.append(f"answers {self.codes}")
        return found


class Clients:
    """Requests of both tenants; one pool of connections, spread over the processes by the kernel."""

    def __init__(self, base_url: str, rated: str, paid: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            trust_env=False,
            timeout=20,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._secrets = {"rated": rated, "paid": paid}
        self.took_s: list[float] = []
        self.codes: Counter[int] = Counter()

    async def one(self, who: str, *, close: bool = False) -> httpx.Response:
        headers = {"authorization": f"Bearer {self._secrets[who]}"}
        if close:
            headers["connection"] = "close"
        body = {"model": "llama", "prompt": "a b c d e", "max_tokens": 10}
        return await self._http.post("/completions", json=body, headers=headers)

    async def rated(self, until: asyncio.Event) -> None:
        """One client of the rate, until told."""
        turn = 0
        while not until.is_set():
            turn += 1
            began_s = time.monotonic()
            answer = await self.one("rated", close=turn % 8 == 0)
            self.took_s.append(time.monotonic() - began_s)
            self.codes[answer.status_code] += 1
            await asyncio.sleep(PAUSE_S)

    async def spend(self) -> None:
        """Who paid ahead asks until refused for good, many at once."""

        async def one() -> None:
            while (await self.one("paid")).headers.get("x-should-retry") != "false":
                pass

        await asyncio.gather(*(one() for _ in range(SPENDERS)))

    async def close(self) -> None:
        await self._http.aclose()


async def break_off(hows: Sequence[How], seconds: float) -> Outcome:
    """Outages of so long, one after another; raises ``TimeoutError`` when money does not come back."""
    outcome = Outcome()
    with serving() as valkey, tempfile.TemporaryDirectory(prefix="outage") as folder:
        async with _selling(Path(folder), valkey) as (gateway, keys):
            clients = Clients(gateway.base_url, keys["rated"], keys["paid"])
            over = asyncio.Event()
            began_s = time.monotonic()
            load = [asyncio.create_task(clients.rated(over)) for _ in range(CLIENTS)]
            await asyncio.sleep(CALM_S)
            for how in hows:
                await _one(outcome, clients, valkey, how, seconds)
                await asyncio.sleep(CALM_S)
            over.set()
            await asyncio.gather(*load)
            outcome.allowed = BURST + 1.1 * PER_MINUTE / 60 * (time.monotonic() - began_s)
            await clients.spend()
            await clients.close()
            outcome.paid_in = int(CREDIT) * NANO
            outcome.spent = await asyncio.to_thread(_spent, gateway, outcome.paid_in)
    took_s = sorted(clients.took_s)
    outcome.asked, outcome.admitted = len(took_s), clients.codes[200]
    outcome.p99_s, outcome.slowest_s = took_s[len(took_s) * 99 // 100], took_s[-1]
    outcome.codes = dict(clients.codes)
    return outcome


async def _one(
    outcome: Outcome, clients: Clients, valkey: Valkey, how: How, seconds: float
) -> None:
    assert (await clients.one("paid")).status_code == 200
    _away(valkey, how)
    await asyncio.sleep(0.3)  # a request finds out
    before = clients.codes[200]
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        outcome.paid_during += (await clients.one("paid")).status_code == 200
        await asyncio.sleep(0.2)
    outcome.during += clients.codes[200] - before
    await asyncio.to_thread(_back, valkey, how)
    back_s = time.monotonic()
    async with asyncio.timeout(60):
        while (await clients.one("paid")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    outcome.recovered_s = max(outcome.recovered_s, time.monotonic() - back_s)


@contextlib.asynccontextmanager
async def _selling(folder: Path, valkey: Valkey) -> AsyncIterator[tuple[Gateway, dict[str, str]]]:
    """A gateway with both tenants, and their keys' secrets."""
    engine = DemoEngine(token_ms=0.0)
    await engine.start()
    gateway = Gateway(
        folder / "data",
        processes=PROCESSES,
        redis_url=valkey.tcp_url,
        access_log="false",
        log_level="warning",
    )
    try:
        await asyncio.to_thread(gateway.start)
        applied = await asyncio.to_thread(gateway.apply, _document(engine.port))
        run = json.loads((gateway.data_dir / "run.json").read_text())
        token = {"authorization": f"Bearer {run['operator_token']}"}
        async with httpx.AsyncClient(headers=token, trust_env=False, timeout=10) as admin:
            url = f"{run['control_url']}/admin/v1/tenants/ahead/credits"
            paid = await admin.post(url, json={"amount": CREDIT, "reference": "first"})
            assert paid.status_code == 201, paid.text
        yield gateway, {each["path"].rpartition("/")[2]: each["secret"] for each in applied["keys"]}
    finally:
        await asyncio.to_thread(gateway.stop)
        await engine.stop()


def _document(engine_port: int) -> dict[str, Any]:
    rate = {"requests_per_minute": {"limit": PER_MINUTE, "burst": BURST}}
    model = {"name": "llama", "upstream": "demo-model", "pool": "pool", "price": PRICE}
    return {
        "pools": [{"name": "pool", "endpoints": [{"url": f"http://127.0.0.1:{engine_port}"}]}],
        "models": [model],
        "tenants": [
            {
                "name": "acme",
                "projects": [{"name": "p", "keys": [{"name": "rated", "limits": rate}]}],
            },
            {
                "name": "ahead",
                "contract": {"kind": "prepaid"},
                "projects": [{"name": "p", "keys": [{"name": "paid"}]}],
            },
        ],
    }


def _away(valkey: Valkey, how: How) -> None:
    if how == "stopped":
        valkey.pause()
    else:
        valkey.kill()


def _back(valkey: Valkey, how: How) -> None:
    """Killed, it comes back with nothing of what it held."""
    if how == "stopped":
        valkey.resume()
    else:
        valkey.start()


def _spent(gateway: Gateway, paid_in: int) -> int:
    """What the records bill who paid ahead, once nearly all is there, or time ran out."""
    until_s = time.monotonic() + 10
    while True:
        records = [each for each in gateway.records() if each["tenant"] == "ahead"]
        tokens = sum(each["prompt_tokens"] + each["completion_tokens"] for each in records)
        spent = tokens * 1000 * 1000
        if spent > 0.95 * paid_in or time.monotonic() > until_s:
            return spent
