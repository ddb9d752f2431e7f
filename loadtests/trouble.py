"""What loadtests/faults.py breaks while requests run: one method a fault.

Not here: how a part of the site is killed or held (``site``, ``tap``), what must have come of it
(``checker``, ``auditor``).
"""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Awaitable, Callable
from io import RawIOBase

import httpx

from loadtests.crowd import Crowd
from loadtests.findings import Plan, Report
from loadtests.site import CONTROL, DATA, TIGHT_RPM, TOP_UP, Site

#: A disk without a byte left refuses when what was allocated ahead is written.
FULL_WITHIN_S = 180.0
#: An engine misbehaves this often and this long, whatever else goes on.
WEATHER_S = (0.5, 0.25)
#: A fault is over when an answer has come whole again.
SERVES_WITHIN_S = 40.0
#: A process is killed amidst so many requests that engines work on, where they come within seconds.
AMIDST, AMIDST_WITHIN_S = 4, 3.0


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
        turns: list[dict[str, object]] = []
        while True:
            await asyncio.sleep(WEATHER_S[0] * self._chance.uniform(0.5, 1.5))
            # Each kind once before any comes again: a short run is to have them all.
            turns = turns or self._chance.sample(kinds, len(kinds))
            faults = self._chance.choice(self._site.engines).faults
            for name, value in turns.pop().items():
                before = getattr(faults, name)
                setattr(faults, name, value)
                await asyncio.sleep(WEATHER_S[1] * self._chance.uniform(0.5, 2.5))
                setattr(faults, name, before)

    # -- kills -------------------------------------------------------------------------------

    async def _amidst(self) -> None:
        """Until engines are at work on several requests: a kill then leaves some that nobody ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AMIDST_WITHIN_S):
                while self._engines_run() < AMIDST:  # noqa: ASYNC110 -- they tell nobody
                    await asyncio.sleep(0.002)

    def _engines_run(self) -> int:
        return sum(engine.running for engine in self._site.engines)

    async def _data_kill(self) -> None:
        await self._amidst()
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
        await self._amidst()
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
