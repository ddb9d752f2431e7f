"""Everything is killed, cut, wiped and filled, under load; then every token is looked for.

Starts PostgreSQL, a Valkey, demo engines and a whole gateway of its own, sends requests of every kind
(aborts, failovers, several choices), for tenants that pay ahead and afterwards, and breaks one thing
after another. At the end three accounts are compared: what the engines saw and made, what the clients
received, and the usage records; then the books with the records: postings, sums, credits, statements,
and the balances that the store has. Prints one table; exits 1 when a record is lost, doubled, altered
or invented, when a nano is, when a reservation stays open, or when a limit no longer holds.

Usage: python -m loadtests.faults            (the long form: 20,000 requests, some 12 minutes)
       python -m loadtests.faults --short    (a few hundred requests and one of each quick fault)
The full disk needs root, for a small file system of its own; without it, it is left out and said so.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from loadtests.auditor import Figures, audit, available_nano, purse_fault
from loadtests.checker import check
from loadtests.crowd import Crowd, witnessed
from loadtests.findings import SHORT, Plan, Report
from loadtests.site import ENDPOINT_COST, PRICED, TENANTS, Site, site, small_disk, until
from loadtests.trouble import Trouble

DISK_MB = 160
#: A request that began this long before a loss of the store may have been settled after it.
LONGEST_MS = 60_000


async def run(plan: Plan, folder: Path) -> Report:
    """One run of a plan. Raises ``TimeoutError`` where something did not come back at all."""
    report = Report(plan)
    began_s = time.monotonic()
    async with site(folder, engines=3, processes=2) as place:
        await place.start()
        await place.declare(tight_keys=plan.store_losses)
        crowd = Crowd(
            place.gateway.base_url.removesuffix("/v1") + "/v1",
            [place.keys[name] for name in TENANTS],
            rate=plan.rate,
            workers=plan.workers,
            seed=plan.seed,
        )
        load = asyncio.ensure_future(crowd.run())
        trouble = Trouble(place, crowd, plan, report)
        weather = asyncio.ensure_future(trouble.weather())
        top_ups = asyncio.ensure_future(trouble.top_ups())
        try:
            await trouble.everything()
            await until(lambda: _seen(place) > plan.requests, "all requests", 3600)
            await place.balances_known()
        finally:
            weather.cancel()
            trouble.over.set()
            crowd.stop()
            await asyncio.gather(load, weather, return_exceptions=True)
            await top_ups
        await until(lambda: not any(engine.running for engine in place.engines), "idle engines")
        await place.settled()
        await _fill_in(report, place, crowd)
    report.seconds = time.monotonic() - began_s
    return report


def _seen(place: Site) -> int:
    """Requests that engines saw; their probes, which carry no id, count as one."""
    return len({entry.request_id for engine in place.engines for entry in engine.log})


async def _fill_in(report: Report, place: Site, crowd: Crowd) -> None:
    """The three accounts, compared while it runs, and once more after a graceful stop."""
    records = await asyncio.to_thread(place.gateway.records)
    saw = []
    for engine, tap in zip(place.engines, place.taps, strict=True):
        saw += witnessed(tap.url, engine.log)
    report.verdict = check(saw, crowd.notes.values(), records)
    report.sent, report.away = crowd.sent, crowd.away
    report.refused = dict(crowd.refused)
    report.outcomes = dict(Counter(record["outcome"] for record in records))
    report.sources = dict(Counter(record["source"] for record in records))
    report.failovers = sum(record["attempts"] > 1 for record in records)
    report.several_choices = sum(record["choices"] > 1 for record in records)
    report.quarantined = await asyncio.to_thread(place.quarantined)
    report.open_reservations = await asyncio.to_thread(place.open_reservations)
    ids = (await place.books()).tenants
    levels = {name: await place.balance_micro(ids[name]) for name in ("ahead", "after")}
    await asyncio.to_thread(place.gateway.stop)
    report.same_after_stop = records == await asyncio.to_thread(place.gateway.records)
    await _audit(report, place, levels)


async def _audit(report: Report, place: Site, levels: dict[str, int | None]) -> None:
    """The books against the records; every month is closed first. ``levels``: the store's balances."""
    books = await place.books(close=True)
    report.money_wrong += audit(books, Figures.of(PRICED, {"cost": ENDPOINT_COST}))
    report.postings, report.statements = len(books.postings), len(books.statements)
    for name, tenant_id in books.tenants.items():
        mine = [record for record in books.records if record["tenant_id"] == tenant_id]
        report.sold[name] = sum(record["charged_nano"] for record in mine)
        if name in levels:
            since = [each for each in mine if each["started_ms"] >= place.lost_ms - LONGEST_MS]
            held = available_nano(books, tenant_id)
            fault = purse_fault(name, levels[name], held, len(since))
            report.money_wrong += [fault] if fault else []
    added = sum(row["reference"].startswith("top-up-") for row in books.grants)
    if added != report.top_ups:
        report.money_wrong.append(f"{report.top_ups} credits were answered, {added} are there")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few hundred requests")
    for name in Plan.__struct_fields__:
        kind = type(getattr(SHORT, name))
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    plan = SHORT if given.pop("short") else Plan()
    plan = msgspec.structs.replace(plan, **{k: v for k, v in given.items() if v is not None})
    if plan.full_disks and os.geteuid():
        print("not root: the full disk is left out", file=sys.stderr)
        plan = msgspec.structs.replace(plan, full_disks=0)
    with tempfile.TemporaryDirectory(prefix="tf-faults") as name:
        folder = Path(name)
        if plan.full_disks:
            with small_disk(folder, DISK_MB):
                report = asyncio.run(run(plan, folder))
        else:
            report = asyncio.run(run(plan, folder))
    print(report.table())
    for fault in report.wrong[:20]:
        print("FAULT", fault)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
