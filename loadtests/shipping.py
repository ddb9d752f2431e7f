"""How fast records reach the ledger on PostgreSQL: throughput, the time from end to ledger, an outage.

    python -m loadtests.shipping [--rate N] [--outage-s N] [--records N]

A real journal, shipper and PostgreSQL (the test extra's own), with priced records, so that what each
is charged is booked in the same transaction. The outage is not waited for: what a host would have
written in it at ``--rate`` is written at once, and drained while the rate goes on. Promised: 5,000
records a second, a p99 of 2 s from end to ledger, and a 5-minute outage drained in 60 s.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from gateway.control.core import LANES
from gateway.controlplane import settle_memory
from gateway.metering.incarnation import Incarnation
from gateway.metering.journal import Journal
from gateway.metering.shipper import Shipper
from gateway.store.database import Database, open_database
from gateway.store.ledger import insert_records, known_ids
from quotas.record import UsageRecord, encode
from tests.support.applying import FULL, apply
from tests.support.lives import CONTEXT
from tests.support.postgres import Postgres
from tests.support.records import record

#: Tenants that pay: each record leaves postings and sums.
PAYING = FULL | {
    "tenants": [each | {"contract": {"kind": "payg"}} for each in FULL["tenants"]],
}
RECORDS_A_SECOND, LATENCY_S, DRAIN_S = 5_000, 2.0, 60.0


class Site:
    """One data process's journal and the shipper of its host. ``late_s``: end to ledger, each."""

    def __init__(self, data_dir: Path, db: Database) -> None:
        self._db = db
        self.life = Incarnation.create(data_dir, 0, 16)
        self.shipper = Shipper(
            data_dir,
            self._insert,
            None,
            CONTEXT,
            known=lambda ids: known_ids(db, ids),
            lanes=LANES,
        )
        self._made = record(0)[1]
        self._count = 0
        self.shipped = 0
        self.late_s: list[float] = []

    async def _insert(self, batch: list[tuple[bytes, UsageRecord]]) -> None:
        await insert_records(self._db, batch)
        now_ms = time.time_ns() // 1_000_000
        self.shipped += len(batch)
        self.late_s += [(now_ms - each.started_ms - each.total_ms) / 1000 for _, each in batch]

    @property
    def waiting(self) -> int:
        return self._count - self.shipped

    def end(self, count: int) -> None:
        """So many requests end now."""
        journal: Journal = self.life.journal
        now_ms = time.time_ns() // 1_000_000
        for _ in range(count):
            self._count += 1
            made = msgspec.structs.replace(
                self._made, request_id=f"{self._count:032x}", started_ms=now_ms, total_ms=0
            )
            journal.mark_settled(journal.append(encode(made)))

    async def end_at(self, rate: int, until_s: float) -> None:
        """A steady rate until then (monotonic)."""
        begun_s, made = time.monotonic(), 0
        while time.monotonic() < until_s:
            due = int((time.monotonic() - begun_s) * rate)
            self.end(due - made)
            made = due
            await asyncio.sleep(0.01)

    async def drained(self, at_most: int) -> float:
        begun_s = time.monotonic()
        while self.waiting > at_most:  # noqa: ASYNC110 -- a condition of the database's making
            await asyncio.sleep(0.02)
        return time.monotonic() - begun_s


async def throughput(site: Site, records: int) -> float:
    site.end(records)
    begun_s = time.monotonic()
    while site.waiting:
        await site.shipper.ship_once()
    return records / (time.monotonic() - begun_s)


async def latency(site: Site, rate: int) -> float:
    shipping = asyncio.ensure_future(site.shipper.run())
    site.late_s.clear()
    await site.end_at(rate, time.monotonic() + 10)
    await site.drained(0)
    shipping.cancel()
    await asyncio.gather(shipping, return_exceptions=True)
    late = sorted(site.late_s)
    return late[int(len(late) * 0.99)]


async def outage(site: Site, rate: int, outage_s: float) -> float:
    for _ in range(int(outage_s)):
        site.end(rate)
        await asyncio.sleep(0)
    shipping = asyncio.ensure_future(site.shipper.run())
    going_on = asyncio.ensure_future(site.end_at(rate, time.monotonic() + 3600))
    try:
        return await site.drained(2 * rate)
    finally:
        for task in (shipping, going_on):
            task.cancel()
        await asyncio.gather(shipping, going_on, return_exceptions=True)


async def run(url: str, data_dir: Path, asked: argparse.Namespace) -> int:
    db = open_database(url, data_dir)
    await db.migrate()
    await apply(db, PAYING)
    site = Site(data_dir, db)
    settle_memory()
    speed = await throughput(site, asked.records)
    print(f"throughput: {speed:,.0f} records/s (promised {RECORDS_A_SECOND:,})")
    late_s = await latency(site, asked.rate)
    print(f"end to ledger at {asked.rate}/s: p99 {late_s:.2f} s (promised {LATENCY_S:g})")
    drain_s = await outage(site, asked.rate, asked.outage_s)
    print(
        f"an outage of {asked.outage_s:g} s at {asked.rate}/s: drained in {drain_s:.1f} s, "
        f"the rate going on (promised {DRAIN_S:g})"
    )
    await site.shipper.close()
    site.life.close()
    await db.close()
    return int(speed < RECORDS_A_SECOND or late_s > LATENCY_S or drain_s > DRAIN_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=500, metavar="N", help="requests a second")
    parser.add_argument("--outage-s", type=float, default=300, metavar="N")
    parser.add_argument("--records", type=int, default=30_000, metavar="N", help="for throughput")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)  # the server's user must be able to enter it
    for name in ("data", "host"):
        (folder / name).mkdir()
    server = Postgres(folder / "data").start()
    try:
        code = asyncio.run(run(server.new_url(), folder / "host", asked))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
