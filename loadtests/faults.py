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
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from io import RawIOBase
from pathlib import Path

import httpx
import msgspec

from loadtests.auditor import Figures, audit, available_nano, purse_fault
from loadtests.checker import Verdict, check
from loadtests.crowd import Crowd, witnessed
from loadtests.site import (
    CONTROL,
    DATA,
    ENDPOINT_COST,
    PRICED,
    TENANTS,
    TIGHT_RPM,
    TOP_UP,
    Site,
    site,
    small_disk,
    until,
)

DISK_MB = 160
#: A disk without a byte left refuses when what was allocated ahead is written.
FULL_WITHIN_S = 180.0
#: An engine misbehaves this often and this long, whatever else goes on.
WEATHER_S = (0.5, 0.25)
#: A request that began this long before a loss of the store may have been settled after it.
LONGEST_MS = 60_000
#: A fault is over when an answer has come whole again.
SERVES_WITHIN_S = 40.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what; times in seconds, ``rate`` in requests a second."""

    requests: int = 20_000
    rate: float = 40.0
    workers: int = 48
    seed: int = 1
    data_kills: int = 20
    tree_kills: int = 5
    control_kills: int = 5
    supervisor_kills: int = 5
    store_losses: int = 10
    cuts: int = 10
    sql_outages: int = 1
    sql_outage_s: float = 300.0
    full_disks: int = 1
    cut_s: float = 1.5
    pause_s: float = 2.0
    top_up_s: float = 10.0


SHORT = Plan(
    requests=300, rate=25.0, workers=24, data_kills=1, tree_kills=1, control_kills=1,
    supervisor_kills=1, store_losses=2, cuts=2, sql_outages=1, sql_outage_s=3.0, full_disks=0,
    cut_s=0.5, pause_s=0.2, top_up_s=1.0,
)  # fmt: skip


class Report(msgspec.Struct):
    """What a run found. ``faults``: name -> (how often, the longest until an answer came whole)."""

    plan: Plan
    verdict: Verdict = msgspec.field(default_factory=Verdict)
    faults: dict[str, tuple[int, float]] = {}
    sent: int = 0
    away: int = 0
    refused: dict[int, int] = {}
    outcomes: dict[str, int] = {}
    sources: dict[str, int] = {}
    failovers: int = 0
    several_choices: int = 0
    quarantined: int = 0
    open_reservations: int = 0
    limits_asked: int = 0
    limits_wrong: list[str] = []
    sql_caught_up_s: float = 0.0
    disk_refused_s: float = 0.0
    disk_wrong: list[str] = []
    same_after_stop: bool = True
    money_wrong: list[str] = []
    sold: dict[str, int] = {}
    postings: int = 0
    statements: int = 0
    top_ups: int = 0
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        found = [
            *self.verdict.faults, *self.limits_wrong, *self.money_wrong, *self.disk_wrong,
        ]  # fmt: skip
        if self.open_reservations:
            found.append(f"{self.open_reservations} reservations are open and nothing runs")
        if self.quarantined:
            found.append(f"{self.quarantined} records in quarantine")
        if not self.same_after_stop:
            found.append("the records after a graceful stop are not those before it")
        if self.verdict.seen < self.plan.requests:
            found.append(f"engines saw {self.verdict.seen} requests of {self.plan.requests}")
        return found

    def table(self) -> str:
        verdict, plan = self.verdict, self.plan
        rows = [
            ("requests sent / that an engine saw", f"{self.sent:,} / {verdict.seen:,}"),
            ("attempts at engines / with failover", f"{verdict.attempts:,} / {self.failovers:,}"),
            ("with several choices", f"{self.several_choices:,}"),
            ("answers other than 200", _counts(self.refused)),
            ("connections refused while down", f"{self.away:,}"),
            ("records by outcome", _counts(self.outcomes)),
            ("records by source", _counts(self.sources)),
        ]
        for name, (times, longest_s) in self.faults.items():
            rows.append((name, f"{times}; served again within {longest_s:.1f} s"))
        if plan.sql_outages:
            rows.append(("ledger up to date after the SQL outage", f"{self.sql_caught_up_s:.1f} s"))
        if plan.full_disks:
            said = "no" if self.disk_wrong else f"all, within {self.disk_refused_s:.1f} s"
            rows.append(("new requests refused with 503 while the disk was full", said))
        else:
            rows.append(("full disk", "left out of this run"))
        rows += [
            ("limits asked after a loss of the store",
             f"{self.limits_asked}; wrong {len(self.limits_wrong)}"),
            ("open reservations at the end", f"{self.open_reservations}"),
            ("exact / between received and made", f"{verdict.exact:,} / {verdict.between:,}"),
            ("sent and seen by no engine (0 tokens)", f"{verdict.unseen:,}"),
            ("**lost**", f"{len(verdict.lost)}"),
            ("**twice**", f"{len(verdict.doubled)}"),
            ("altered / invented / quarantined",
             f"{len(verdict.altered)} / {len(verdict.invented)} / {self.quarantined}"),
            ("sold, in nano-units", _counts(self.sold)),
            ("credits added meanwhile", f"{self.top_ups}"),
            ("**postings / statements / differing by a nano or more**",
             f"{self.postings:,} / {self.statements} / {len(self.money_wrong)}"),
        ]  # fmt: skip
        head = f"| seed {plan.seed}, {self.seconds:.0f} s | |\n|---|---|\n"
        return head + "\n".join(f"| {name} | {value} |" for name, value in rows)


class Trouble:
    """One method a fault. Each returns when the fault is over, as far as its maker is concerned."""

    def __init__(self, place: Site, crowd: Crowd, plan: Plan, report: Report) -> None:
        self._site = place
        self._crowd = crowd
        self._plan = plan
        self._report = report
        self._chance = random.Random(plan.seed)
        self._tight = 0
        self.over = asyncio.Event()

    async def everything(self) -> None:
        """Every fault of the plan, in a seeded order, with load between them."""
        plan = self._plan
        kinds: list[tuple[str, Callable[[], Awaitable[None]], int]] = [
            ("kill -9 of a data process", self._data_kill, plan.data_kills),
            ("kill -9 of the whole tree", self._tree_kill, plan.tree_kills),
            ("kill -9 of control alone", self._control_kill, plan.control_kills),
            ("kill -9 of the supervisor alone", self._supervisor_kill, plan.supervisor_kills),
            ("Valkey killed or flushed", self._store_loss, plan.store_losses),
            ("network between gateway and engine cut", self._cut, plan.cuts),
            (f"SQL outage of {plan.sql_outage_s:g} s", self._sql_outage, plan.sql_outages),
            ("disk full", self._full_disk, plan.full_disks),
        ]
        order = [(name, make) for name, make, times in kinds for _ in range(times)]
        self._chance.shuffle(order)
        for name, make in order:
            await asyncio.sleep(self._plan.pause_s * self._chance.uniform(0.5, 1.5))
            await self._one(name, make)

    async def _one(self, name: str, make: Callable[[], Awaitable[None]]) -> None:
        began_s = time.monotonic()
        print(f"{name} ...", end="", file=sys.stderr, flush=True)
        await make()
        self._crowd.answered.clear()
        over_s = time.monotonic()
        async with asyncio.timeout(SERVES_WITHIN_S):
            await self._crowd.answered.wait()
        served_s = time.monotonic() - over_s
        await self._site.whole()
        print(f" {time.monotonic() - began_s:.1f} s", file=sys.stderr)
        times, longest_s = self._report.faults.get(name, (0, 0.0))
        self._report.faults[name] = (times + 1, max(longest_s, served_s))

    async def top_ups(self) -> None:
        """Money comes in meanwhile, whatever is broken: each credit is asked for until it is taken."""
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), self._plan.top_up_s)
            await self._site.credit(TOP_UP, f"top-up-{self._report.top_ups}")
            self._report.top_ups += 1

    async def weather(self) -> None:
        """Engines that fail by themselves, a little all the time: failovers, cut streams, stalls."""
        kinds = [
            {"status": 500}, {"status": 503}, {"die_after_frames": 3}, {"die_after_frames": 0},
            {"error_event_first": True}, {"stall_after_frames": 4},
        ]  # fmt: skip
        while True:
            await asyncio.sleep(WEATHER_S[0] * self._chance.uniform(0.5, 1.5))
            faults = self._chance.choice(self._site.engines).faults
            for name, value in self._chance.choice(kinds).items():
                before = getattr(faults, name)
                setattr(faults, name, value)
                await asyncio.sleep(WEATHER_S[1] * self._chance.random())
                setattr(faults, name, before)

    # -- kills -------------------------------------------------------------------------------

    async def _data_kill(self) -> None:
        await self._site.kill(self._chance.choice(self._site.pids(DATA)))

    async def _control_kill(self) -> None:
        await self._site.kill(*self._site.pids(CONTROL))

    async def _supervisor_kill(self) -> None:
        await self._site.kill(self._site.gateway.pid)
        await self._site.gone()
        await self._again()

    async def _tree_kill(self) -> None:
        """And a command, killed as well, that would have recovered what the tree left."""
        place = self._site
        await place.kill(place.gateway.pid, *place.pids(DATA), *place.pids(CONTROL))
        await place.gone()
        await place.command_killed(self._chance.uniform(0.3, 1.5))
        await self._again()

    async def _again(self) -> None:
        await asyncio.to_thread(self._site.gateway.stop)
        await self._site.start()

    # -- state -------------------------------------------------------------------------------

    async def _store_loss(self) -> None:
        """Killed (it keeps nothing) and started again, or flushed; then a limit is put to the test."""
        valkey = self._site.valkey
        if self._tight % 2:
            await asyncio.to_thread(valkey.admin.flushall)
        else:
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(self._chance.uniform(0.2, 1.5))
            await asyncio.to_thread(valkey.start)
        self._site.lost_ms = time.time_ns() // 1_000_000
        await self._limits_hold()

    async def _limits_hold(self) -> None:
        """A key nobody used: asked for twice its limit at once until its burst was had, and no more.

        While a process has not found the store again it admits its share of the rate alone.
        """
        secret = self._site.keys[f"tight-{self._tight}"]
        self._tight += 1
        self._report.limits_asked += 1
        began_s = time.monotonic()
        admitted = 0
        while admitted < TIGHT_RPM and time.monotonic() - began_s < SERVES_WITHIN_S:
            async with httpx.AsyncClient(
                base_url=self._crowd.base_url, timeout=20, trust_env=False
            ) as client:
                asked = (self._crowd.one(client, "unary", secret) for _ in range(2 * TIGHT_RPM))
                notes = [note for note in await asyncio.gather(*asked) if note is not None]
            admitted += sum(note.status not in (429, 503) for note in notes)
            refilled = (time.monotonic() - began_s) * TIGHT_RPM / 60 + 1
            if admitted > TIGHT_RPM + refilled:
                break
            await asyncio.sleep(0.5)
        else:
            if admitted >= TIGHT_RPM:
                return
        self._report.limits_wrong.append(f"a limit of {TIGHT_RPM} admitted {admitted}")

    async def _cut(self) -> None:
        """One engine's network or all of it; cut, or silent."""
        taps = self._site.taps
        chosen = self._chance.sample(taps, self._chance.choice([1, 1, len(taps)]))
        silent = self._chance.random() < 0.4
        for tap in chosen:
            if silent:
                tap.hold()
            else:
                tap.cut()
        await asyncio.sleep(self._plan.cut_s * self._chance.uniform(0.2, 2.0))
        for tap in chosen:
            tap.mend()

    async def _sql_outage(self) -> None:
        """First it hangs, then it is gone; data processes die meanwhile, and the store as well."""
        half_s = self._plan.sql_outage_s / 2
        postgres = self._site.postgres
        await asyncio.to_thread(postgres.pause)
        await self._meanwhile(half_s)
        await asyncio.to_thread(postgres.resume)
        await asyncio.to_thread(postgres.crash)
        await self._meanwhile(half_s)
        await asyncio.to_thread(postgres.start)
        self._report.sql_caught_up_s = await self._site.caught_up()

    async def _meanwhile(self, for_s: float) -> None:
        until_s = time.monotonic() + for_s
        await self._data_kill()
        await asyncio.sleep(for_s / 2)
        await asyncio.to_thread(self._site.valkey.admin.flushall)
        self._site.lost_ms = time.time_ns() // 1_000_000
        await asyncio.sleep(max(0.0, until_s - time.monotonic()))

    async def _full_disk(self) -> None:
        """Not a byte is left, and the database hangs, so that nothing is freed: requests are refused
        before an engine sees them, when the journals' last segments are written. A data process dies
        then, and nothing can be written for it.
        """
        filler = self._site.gateway.data_dir / "filler"
        postgres = self._site.postgres
        await asyncio.to_thread(postgres.pause)
        try:
            with filler.open("wb", buffering=0) as file:
                _fill(file)
                await self._refused(file)
                await self._data_kill()
                await asyncio.sleep(6)
                await asyncio.to_thread(postgres.resume)
                file.truncate(max(0, filler.stat().st_size - (6 << 20)))  # room for half a process
                await asyncio.sleep(6)
        finally:
            await asyncio.to_thread(postgres.resume)
            filler.unlink()

    async def _refused(self, file: RawIOBase) -> None:
        """Wait until new requests are answered 503, all of them."""
        began_s = time.monotonic()
        while (answers := await self._answers_without_room()) != {503}:
            if time.monotonic() - began_s > FULL_WITHIN_S:
                self._report.disk_wrong.append(f"a full disk answered {sorted(answers)}")
                return
            _fill(file)  # what logs and snapshots have freed meanwhile
            await asyncio.sleep(0.2)
        self._report.disk_refused_s = time.monotonic() - began_s

    async def _answers_without_room(self) -> set[int]:
        """Statuses of many new connections, over all processes; 0: an engine saw a request all the
        same, or its answer did not come.
        """
        secret = self._site.keys["acme"]
        statuses = set()
        for _ in range(4 * self._site.processes):
            async with httpx.AsyncClient(
                base_url=self._crowd.base_url, timeout=20, trust_env=False
            ) as client:
                note = await self._crowd.one(client, "unary", secret)
            if note is not None:
                seen = any(
                    each.request_id == note.request_id
                    for engine in self._site.engines
                    for each in engine.log[-1000:]
                )
                statuses.add(0 if seen and note.status != 200 else note.status)
        return statuses


def _fill(file: RawIOBase) -> None:
    with contextlib.suppress(OSError):  # full
        while True:
            file.write(b"\0" * (1 << 12))


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


def _counts(counts: dict) -> str:
    return ", ".join(f"{name} {times:,}" for name, times in sorted(counts.items())) or "none"


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
