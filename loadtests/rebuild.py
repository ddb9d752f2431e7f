"""Every tenant's balance lost with the store, and counted anew: how long until all are served again?

A database of so many tenants who paid ahead, a Valkey that is wiped, the control process's and two data
processes' parts of the rebuild with the link between them, all in this process. Tenants ask at once, as
many together as two busy data processes have requests; whoever is not counted yet is refused, and asks
again. Not here: shipping what journals hold (``loadtests/faults.py``); nothing is owed. Used by
``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import msgspec
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.admission import Admission
from gateway.balances import Balances as DataBalances
from gateway.contract.errors import StoreAway
from gateway.control.balances import Balances
from gateway.leases import Leases
from gateway.link.client import LinkClient
from gateway.link.messages import Hello, Reheld, Rehold
from gateway.link.server import LinkServer
from gateway.snapshot import KeyDoc, Principal, ProjectDoc, Snapshot, TenantDoc
from gateway.store import schema
from gateway.store.credit import levels_micro
from gateway.store.database import Database, open_database
from gateway.telemetry.counters import Counters
from quotas.limits import Charge, Limit
from quotas.store.redis import RedisStore
from tests.support.until import until
from tests.support.valkey import Valkey

PROCESSES = 2
#: Requests of a process that wait for their tenant's money at once.
TOGETHER = 128
ASKED_MICRO = 1_000


class Rebuild(msgspec.Struct, frozen=True):
    """``refused``: asks that were refused before their tenant was counted, of those that were tried
    on purpose; ``wrong``: tenants whose balance in the store is not SQL's; ``asks``: how often in all.
    """

    tenants: int
    seconds: float
    asks: int
    refused: int
    wrong: int


def limit_of(tenant_id: int) -> Limit:
    return Limit(f"t{tenant_id}", f"tenant {tenant_id}", "money", "balance", 0, 0, 1, "now")


def granted_nano(tenant_id: int) -> int:
    return 10**9 + tenant_id * 10**6


def principal_of(tenant_id: int) -> Principal:
    tenant = TenantDoc(id=tenant_id, name=f"t{tenant_id}", limits=(limit_of(tenant_id),), pays=True)
    project = ProjectDoc(id=tenant_id, tenant_id=tenant_id, name="p")
    key = KeyDoc(id=tenant_id, project_id=tenant_id, name="k", path="t/p/k", secrets=())
    return Principal(key, project, tenant)


async def rebuild(server: Valkey, tenants: int) -> Rebuild:
    """Count everybody, wipe the store, and count everybody again: the second is what is measured."""
    principals = [principal_of(number) for number in range(1, tenants + 1)]
    with tempfile.TemporaryDirectory(prefix="rebuild") as name:
        folder = Path(name)
        db = open_database(None, folder)
        await _fill(db, tenants)
        async with _control(db, folder, principals), _processes(server, folder) as processes:
            await _all_served(processes, principals)
            server.admin.flushall()
            sample = principals[:: max(1, tenants // 50)]
            refused = 0
            for principal in sample:
                store = processes[0][0]
                verdict = await store.reserve(principal.tag, "early", _charges(principal), 60)
                refused += verdict.reason == "unbuilt"
            began_s = time.monotonic()
            asks = await _all_served(processes, principals)
            seconds = time.monotonic() - began_s
            wrong = await _wrong(processes[0][0], db, principals)
        await db.close()
    assert refused == len(sample)
    return Rebuild(tenants, seconds, asks, refused, wrong)


async def _fill(db: Database, tenants: int) -> None:
    ids = range(1, tenants + 1)
    await db.migrate()
    async with db.begin() as connection:
        await connection.execute(
            insert(schema.tenants), [{"id": number, "name": f"t{number}"} for number in ids]
        )
        await connection.execute(
            insert(schema.contracts),
            [
                {
                    "tenant_id": number, "version": 1, "kind": "prepaid", "currency": "USD",
                    "credit_line_nano": 0, "commitment_nano": 0, "overage_ppm": 0, "from_ms": 0,
                }
                for number in ids
            ],
        )  # fmt: skip
        await connection.execute(
            insert(schema.grants),
            [
                {
                    "tenant_id": number, "kind": "paid", "currency": "USD", "priority": 0,
                    "amount_nano": granted_nano(number), "left_nano": granted_nano(number),
                    "expires_ms": 0, "given_ms": 0, "reference": "r", "entry_key": f"topup:{number}",
                }
                for number in ids
            ],
        )  # fmt: skip


@contextlib.asynccontextmanager
async def _control(db: Database, folder: Path, principals: list[Principal]) -> AsyncIterator[None]:
    """The control process's end of the link, with its count of balances."""
    snapshot = Snapshot()
    snapshot.tenants = {each.tenant.id: each.tenant for each in principals}
    link = LinkServer({})

    async def levels(
        connection: AsyncConnection, tenant_ids: Collection[int]
    ) -> dict[int, tuple[int, tuple[str, ...]]]:
        return await levels_micro(connection, tenant_ids, time.time_ns() // 1_000_000)

    async def ship() -> None:
        await asyncio.sleep(0)

    balances = Balances(db, snapshot, link, ship=ship, unsettled=lambda _tag: (), levels=levels)
    link.handlers |= {"balances": balances.on_asked, "reheld": balances.on_reheld}
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "link"))
    await link.serve(listening)
    try:
        yield
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def _processes(
    server: Valkey, folder: Path
) -> AsyncIterator[list[tuple[RedisStore, Admission]]]:
    """What two data processes have of it. They share a loop here, which holds each of them up."""
    made, running, links = [], [], []
    for number in range(PROCESSES):
        store = RedisStore(server.tcp_url, name="redis", owner=f"o{number}", timeout_s=2.0)
        await store.start()
        balances, link = _linked(store, folder, number)
        links.append(link)
        running.append(asyncio.create_task(link.run()))
        leases = Leases(
            store,
            Counters(),
            name=f"o{number}",
            processes=lambda: PROCESSES,
            monotonic=time.monotonic,
        )
        admission = Admission(
            store,
            balances,
            leases,
            processes=lambda: PROCESSES,
            unix_ms=_unix_ms,
        )
        made.append((store, admission))
    await until(lambda: all(link.connected for link in links))
    try:
        yield made
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for store, admission in made:
            await admission.close()
            await store.close()


def _linked(store: RedisStore, folder: Path, number: int) -> tuple[DataBalances, LinkClient]:
    """A data process's count of balances, and its end of the link."""

    def on_rehold(body: bytes) -> None:
        wanted = msgspec.msgpack.decode(body, type=Rehold)

        async def held() -> None:
            await balances.rehold(wanted)
            link.send("reheld", msgspec.msgpack.encode(Reheld(wanted.number)))

        tasks.add(task := asyncio.ensure_future(held()))
        task.add_done_callback(tasks.discard)

    tasks: set[asyncio.Future[None]] = set()
    hello = Hello(number, 1, 1)
    link = LinkClient(str(folder / "link"), lambda: hello, {"rehold": on_rehold})
    balances = DataBalances(store, link.ask, list)
    return balances, link


def _charges(principal: Principal) -> tuple[Charge, ...]:
    return tuple(Charge(limit, ASKED_MICRO) for limit in principal.limits)


async def _all_served(
    processes: list[tuple[RedisStore, Admission]], principals: list[Principal]
) -> int:
    """Every tenant asks, each process its part of them, until it was admitted; how often in all."""
    asks = 0

    async def ask(store: RedisStore, admission: Admission, waiting: list[Principal]) -> None:
        nonlocal asks
        while waiting:
            principal = waiting.pop()
            asks += 1
            try:
                name = f"r{asks}"
                verdict = await admission.reserve(principal, name, _charges(principal), 60)
            except StoreAway:
                verdict = None
            if verdict is None or not verdict.admitted:
                waiting.insert(0, principal)
            else:
                store.release(principal.tag, name)

    everybody = []
    for number, (store, admission) in enumerate(processes):
        waiting = principals[number::PROCESSES]
        everybody += [ask(store, admission, waiting) for _ in range(TOGETHER)]
    await asyncio.gather(*everybody)
    for store, _ in processes:
        assert await store.flush(10)
    return asks


async def _wrong(store: RedisStore, db: Database, principals: list[Principal]) -> int:
    """How many balances in the store are not what SQL says."""
    async with db.read() as connection:
        ids = [each.tenant.id for each in principals]
        said: dict[int, int] = {}
        for at in range(0, len(ids), 500):
            some = ids[at : at + 500]
            levels = await levels_micro(connection, some, _unix_ms())
            said |= {tenant_id: level for tenant_id, (level, _) in levels.items()}
    wrong = 0
    for principal in principals:
        seen = await store.inspect(principal.tag, _charges(principal))
        wrong += seen.gauges[0].balance != said[principal.tenant.id]
    return wrong


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
