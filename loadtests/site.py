"""Everything that loadtests/faults.py breaks, running for real on this machine.

A PostgreSQL, a Valkey without persistence, demo engines behind pieces of network that can be cut, and
the gateway as operators run it, on one port through all its lives. Not here: when what is broken.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx

from gateway.demo.engine import DemoEngine
from loadtests.crowd import MODEL
from loadtests.tap import Tap
from tests.support.gateway import TOKENFACTORY, Gateway, processes_of
from tests.support.postgres import Postgres
from tests.support.postgres import serving as serving_postgres
from tests.support.valkey import Valkey, free_port
from tests.support.valkey import serving as serving_valkey

CONTROL, DATA = "gateway.controlplane", "gateway.dataplane"
#: Short, so that what hangs is given up within the run.
TIMEOUTS = {"connect_s": 1, "first_event_s": 2, "gap_s": 1.5, "unary_s": 4, "stream_s": 20}
#: Nobody reaches them; each request holds a reservation of every kind.
AMPLE = {
    "requests_per_minute": 10**6, "tokens_per_minute": 10**9, "concurrent_requests": 10**4,
}  # fmt: skip
TIGHT_RPM = 20
WITHIN_S = 40.0
#: Reservations are packed as the store's scripts pack them.
STATE_OF = "local v = redis.call('GET', KEYS[1]); return v and cmsgpack.unpack(v).state"


class Site:
    """``keys``: name of a key -> its secret; "main" is the crowd's, the rest have tight limits."""

    def __init__(
        self,
        folder: Path,
        postgres: Postgres,
        valkey: Valkey,
        engines: list[DemoEngine],
        taps: list[Tap],
        processes: int,
    ) -> None:
        self.folder = folder
        self.postgres = postgres
        self.valkey = valkey
        self.engines = engines
        self.taps = taps
        self.processes = processes
        self.keys: dict[str, str] = {}
        self.database_url = postgres.new_url()
        self.gateway = Gateway(
            folder / "data",
            port=free_port(),
            processes=processes,
            database_url=self.database_url,
            redis_url=valkey.tcp_url,
            access_log="false",
            log_level="warning",
        )

    # -- the gateway's lives -----------------------------------------------------------------

    async def start(self) -> None:
        await asyncio.to_thread(self.gateway.start)

    async def declare(self, tight_keys: int) -> None:
        keys: list[dict] = [{"name": "main", "limits": AMPLE}]
        for number in range(tight_keys):
            limits = {**AMPLE, "requests_per_minute": TIGHT_RPM}
            keys.append({"name": f"tight-{number}", "limits": limits})
        endpoints = [{"url": tap.url} for tap in self.taps]
        price = {"currency": "USD", "input": "0.10", "cached_input": "0.05", "output": "0.40"}
        model = {"name": MODEL, "upstream": "demo-model", "pool": "pool"}
        document = {
            "pools": [{"name": "pool", "endpoints": endpoints}],
            "models": [model | {"timeouts": TIMEOUTS, "price": price}],
            "tenants": [{"name": "acme", "projects": [{"name": "chat", "keys": keys}]}],
        }
        applied = await asyncio.to_thread(self.gateway.apply, document)
        self.keys = {each["path"].rpartition("/")[2]: each["secret"] for each in applied["keys"]}

    def pids(self, module: str) -> list[int]:
        """The living processes of the gateway that run a module."""
        found = []
        for pid in processes_of(self.gateway.data_dir):
            with contextlib.suppress(OSError):
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    async def kill(self, *pids: int) -> None:
        """All of them at once; returns when none of them is left."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(_lives, pids)), f"{pids} to end")

    async def whole(self) -> None:
        """Until every process of the gateway is there."""
        await until(
            lambda: len(self.pids(DATA)) == self.processes and len(self.pids(CONTROL)) == 1,
            "every process of the gateway to be back",
        )

    async def gone(self) -> None:
        await until(lambda: not processes_of(self.gateway.data_dir), "every process to be gone")

    async def command_killed(self, after_s: float) -> None:
        """A command that finds no server recovers and ships; killed in the middle of it."""
        nobody = asyncio.subprocess.DEVNULL
        command = await asyncio.create_subprocess_exec(
            TOKENFACTORY, "usage", "--json", env=self.gateway.environ, stdout=nobody, stderr=nobody
        )
        await asyncio.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            command.kill()
        await command.wait()

    # -- what it owes ------------------------------------------------------------------------

    async def metric(self, name: str) -> float | None:
        """A gauge of the control process; None while that is away."""
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            try:
                page = await client.get(self.gateway.ready["control_url"] + "/metrics")
            except httpx.HTTPError:
                return None
        for line in page.text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        return None

    async def caught_up(self, lag_s: float = 2.0) -> float:
        """Seconds until what is not yet in the ledger ended less than ``lag_s`` ago."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < 5 * WITHIN_S:
            lag = await self.metric("tf_ledger_lag_seconds")
            if lag is not None and lag < lag_s:
                return time.monotonic() - began_s
            await asyncio.sleep(0.25)
        raise TimeoutError("the ledger does not catch up")

    async def settled(self) -> None:
        """Until nothing is unshipped or unsettled."""
        until_s = time.monotonic() + WITHIN_S
        owed: tuple[float | None, ...] = ()
        while time.monotonic() < until_s:
            owed = (
                await self.metric("tf_ledger_unshipped_records"),
                await self.metric("tf_ledger_unsettled_records"),
                await self.metric("tf_reservations_open"),
            )
            if owed == (0, 0, 0):
                return
            await asyncio.sleep(0.25)
        raise TimeoutError(f"unshipped, unsettled and open stay at {owed}")

    def open_reservations(self) -> int:
        """Reservations in the store that nobody has ended, and holds of concurrency."""
        client = self.valkey.admin
        state_of = client.register_script(STATE_OF)
        open_ones = 0
        for key in client.scan_iter("tf:{*}:r:*"):
            open_ones += state_of(keys=[key]) in ("held", "expired")
        for key in client.scan_iter("tf:{*}:h:*"):
            open_ones += sum(int(held.split()[0]) for held in client.hvals(key))
        return open_ones

    def quarantined(self) -> int:
        said = self.postgres.ask(self.database_url, "SELECT count(*) FROM usage_quarantine")
        return int(said)


@contextlib.asynccontextmanager
async def site(folder: Path, *, engines: int, processes: int) -> AsyncIterator[Site]:
    """Started but for the gateway; leaves nothing running."""
    with serving_postgres() as postgres, serving_valkey() as valkey:
        demo = [DemoEngine(token_ms=2.0) for _ in range(engines)]
        for engine in demo:
            await engine.start()
        taps = [await Tap(engine.port).start() for engine in demo]
        made = Site(folder, postgres, valkey, demo, taps, processes)
        try:
            yield made
        finally:
            await asyncio.to_thread(made.gateway.stop, signal.SIGKILL)
            await made.kill(*processes_of(made.gateway.data_dir))
            for tap in taps:
                await tap.stop()
            for engine in demo:
                await engine.stop()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory, that can be filled. Needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def until(condition: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    """Poll; raises ``TimeoutError`` that says what was waited for."""
    deadline_s = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {within_s:g} s for {what}")
        await asyncio.sleep(0.05)
