"""Everything that loadtests/faults.py breaks, running for real on this machine.

A PostgreSQL, a Valkey without persistence, demo engines behind pieces of network that can be cut, and
the gateway as operators run it, on one port through all its lives, selling to three tenants: one pays
ahead, one afterwards up to a credit line, one without bound. Not here: when what is broken.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
from sqlalchemy import select

from gateway.demo.engine import DemoEngine
from gateway.store.database import open_database
from gateway.store.schema import publishers, tenants
from loadtests.auditor import Books, close_months, read_books
from loadtests.crowd import MODEL
from loadtests.tap import Tap
from quotas.limits import Charge, Gauge, Limit
from quotas.store.redis import RedisStore
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
#: Fractions of a nano a token, so that each line of each record is rounded.
PRICED = {
    "price": {
        "currency": "USD", "input": "0.1234567", "cached_input": "0.0512345", "output": "0.4567891",
    },
    "shares": [{"publisher": "labs", "percent": "70", "floor": "0.15"}],
}  # fmt: skip
ENDPOINT_COST = {"input": "0.0212121", "output": "0.0834567"}
#: Name -> contract. The first is served whatever happens to money, and has the keys of tight limits.
TENANTS: dict[str, dict] = {
    "acme": {"kind": "payg"},
    "ahead": {"kind": "prepaid"},
    "after": {"kind": "payg", "credit_line": "1000"},
}
#: What the one that pays ahead begins with; the promotion is soon used up.
CREDITS = (("10", "paid"), ("0.0003", "promotional"))
TOP_UP = "0.01"
TIGHT_RPM = 20
#: The smallest: data processes turn to the next one every few seconds.
SEGMENT_BYTES = 65_536
WITHIN_S = 40.0
#: Reservations are packed as the store's scripts pack them.
#: Whether a reservation is held or expired: the first byte of its record.
OPEN_OF = "local v = redis.call('GET', KEYS[1]); return v and struct.unpack('B', v) <= 2 and 1 or 0"
#: Units held of a scope's concurrency: its header names the levels, whose values follow (lua/scopes.lua).
HELD_OF = """
local raw, held = redis.call('GET', KEYS[1]), 0
if not raw then return 0 end
local header, at = struct.unpack('<Hc0', raw)
local names, kinds, _, _, sizes = cmsgpack.unpack(header)
_, _, at = struct.unpack('<sd', raw, at)
for i = 1, #names do
  for n = 1, sizes[i] do
    local format = kinds[i] == 'quota' and (n == 1 or n == 4) and 's' or '<d'
    local value
    value, at = struct.unpack(format, raw, at)
    if kinds[i] == 'concurrency' and n % 2 == 0 then held = held + value end
  end
end
return held
"""


class Site:
    """``keys``: name of a key -> its secret: a tenant's own name is the crowd's, the rest have tight
    limits. ``lost_ms``: when the store last lost what it held (Unix).
    """

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
        self.lost_ms = 0
        self.database_url = postgres.new_url()
        self.gateway = Gateway(
            folder / "data",
            port=free_port(),
            processes=processes,
            database_url=self.database_url,
            redis_url=valkey.tcp_url,
            access_log="false",
            log_level="warning",
            journal_segment_bytes=SEGMENT_BYTES,
        )

    # -- the gateway's lives -----------------------------------------------------------------

    async def start(self) -> None:
        await asyncio.to_thread(self.gateway.start)

    async def declare(self, tight_keys: int) -> None:
        keys: dict[str, list[dict]] = {name: [{"name": name, "limits": AMPLE}] for name in TENANTS}
        for number in range(tight_keys):
            limits = {**AMPLE, "requests_per_minute": TIGHT_RPM}
            keys["acme"].append({"name": f"tight-{number}", "limits": limits})
        endpoints = [{"url": tap.url, "cost": ENDPOINT_COST} for tap in self.taps]
        model = {"name": MODEL, "upstream": "demo-model", "pool": "pool"}
        document = {
            "pools": [{"name": "pool", "endpoints": endpoints}],
            "publishers": [{"name": "labs"}],
            "models": [model | {"timeouts": TIMEOUTS, **PRICED}],
            "tenants": [
                {
                    "name": name,
                    "contract": contract,
                    "projects": [{"name": "chat", "keys": keys[name]}],
                }
                for name, contract in TENANTS.items()
            ],
        }
        applied = await asyncio.to_thread(self.gateway.apply, document)
        self.keys = {each["path"].rpartition("/")[2]: each["secret"] for each in applied["keys"]}
        for amount, kind in CREDITS:
            await self.credit(amount, kind, kind)

    async def credit(self, amount: str, reference: str, kind: str = "paid") -> None:
        """To who pays ahead; asked again, with the same reference, until it is known to be done."""
        body = {"amount": amount, "reference": reference, "kind": kind}
        until_s = time.monotonic() + 20 * WITHIN_S
        while time.monotonic() < until_s:
            path = "/tenants/ahead/credits"
            answer = await self._admin("POST", path, body, {"idempotency-key": reference})
            if answer is not None and answer.is_success:
                return
            assert answer is None or answer.status_code >= 500, answer.text
            await asyncio.sleep(0.5)
        raise TimeoutError(f"the credit {reference} is not taken")

    async def _admin(
        self, method: str, path: str, body: object, headers: dict[str, str]
    ) -> httpx.Response | None:
        """None while nobody answers."""
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            run = json.loads((self.gateway.data_dir / "run.json").read_text())
            headers = headers | {"authorization": f"Bearer {run['operator_token']}"}
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                url = f"{run['control_url']}/admin/v1{path}"
                return await client.request(method, url, json=body, headers=headers)
        return None

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
        open_of, held_of = client.register_script(OPEN_OF), client.register_script(HELD_OF)
        open_ones = sum(open_of(keys=[key]) for key in client.scan_iter("tf2:{*}:r:*"))
        return open_ones + sum(held_of(keys=[key]) for key in client.scan_iter("tf2:{*}:s:*"))

    async def balance_micro(self, tenant_id: int) -> int | None:
        """Settled money in the store; None where there is none, or some of it is held."""
        gauge = await self._balance(tenant_id)
        return None if gauge.held else gauge.balance

    async def balances_known(self, patience_s: float = 60.0) -> None:
        """Until the store has every balance again, which it lost and requests have counted anew. Call
        it while there are requests. Raises ``TimeoutError``.
        """
        ids = (await self.books()).tenants
        async with asyncio.timeout(patience_s):
            for name in ("ahead", "after"):
                while (await self._balance(ids[name])).balance is None:  # noqa: ASYNC110 -- another process's
                    await asyncio.sleep(0.25)

    async def _balance(self, tenant_id: int) -> Gauge:
        store = RedisStore(self.valkey.tcp_url, name="auditor", owner="auditor", timeout_s=5)
        await store.start()
        try:
            limit = Limit(f"t{tenant_id}", "", "money", "balance", 0, 0, 1, "now")
            said = await store.inspect(f"t{tenant_id}", (Charge(limit, 0),))
        finally:
            await store.close()
        return said.gauges[0]

    async def books(self, *, close: bool = False) -> Books:
        """What the database has of money; with ``close``, after closing every month."""
        db = open_database(self.database_url, "")
        try:
            parties: dict[str, dict[str, int]] = {}
            async with db.read() as connection:
                for kind, table in (("tenant", tenants), ("publisher", publishers)):
                    rows = await connection.execute(select(table.c.name, table.c.id))
                    parties[kind] = {row.name: row.id for row in rows}
            books = await read_books(db, parties)
            if close:
                await close_months(db, books)
            return books
        finally:
            await db.close()

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
