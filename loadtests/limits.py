"""What limits promise, measured and printed as a table.

Starts a Valkey of its own on loopback and shows:

    overshoot   64 clients, 4 processes, 10 seeds, 3 scopes, aborts and a kill -9, in three modes
    dense       the same clients with prompts three times denser than they were estimated
    utilisation the same clients against a limit of 64 reservations a minute
    histories   random steps on both stores side by side, answers and sums compared
    retry-after random states: a client that waits exactly so long, alone, is admitted
    shared      the same clients drawing on leases of a platform's tokens and a pool's slots, in three modes
    storms      a client that leaves before the first frame for ever, and what of the engine it gets
    cancels     reserves cancelled or timed out: wrong replies, leaked holds
    outage      a gateway whose store is stopped, and killed, for a minute: rates go on, money does not
    rebuild     10,000 tenants' balances lost with the store: until all of them are served again
    pace        reserves of three scopes x three limits, 1,000 a second; what one costs the server
    in-process  a reserve and a settle of three scopes x three limits in the in-process store

Usage: python -m loadtests.limits [--seeds 10] [--steps 50000] [--states 1000] [--cancels 100000]
           [--outage 60] [--tenants 10000] [--pace 10] [ROW ...]
Exits 1 when a promise is not kept.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from gateway.demo.works import Faults
from loadtests import leases, storm
from loadtests.cancels import cancel
from loadtests.histories import walk
from loadtests.honesty import dishonest
from loadtests.outage import break_off
from loadtests.overshoot import MODES, Setting, dense_setting, run
from loadtests.pace import in_process_us, pace
from loadtests.rebuild import rebuild
from tests.support.engine_thread import EngineThread
from tests.support.gateway import running
from tests.support.valkey import Valkey, serving

STEPS_EACH = 40
STORM_S = 10.0
#: Of an admission at 1,000 a second, and of the server's time, on a machine that does nothing else.
MOST_P99_MS, MOST_RESERVE_US = 3.0, 40.0
MOST_IN_PROCESS_US = 8.0
MOST_REBUILD_S = 10.0
#: A limit of 64 reservations of some 1,900 tokens, of which a third is used.
UTILISATION = Setting(
    "reserve",
    1,
    20.0,
    limit=122_000,
    per_minute=122_000,
    reserved_to_actual=1 / 0.3,
    kill_s=-1.0,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--states", type=int, default=1_000)
    parser.add_argument("--cancels", type=int, default=100_000)
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--pace", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="by name; all where none is given")
    told = parser.parse_args()
    with serving() as server:
        rows: dict[str, Callable[[], bool]] = {
            "overshoot": lambda: overshoot(server, told.seeds),
            "dense": lambda: dense(server, told.seeds),
            "utilisation": lambda: utilisation(server),
            "shared": lambda: shared(server, told.seeds),
            "histories": lambda: histories(server, told.steps),
            "retry-after": lambda: honesty(server, told.states),
            "cancels": lambda: cancels(server, told.cancels),
            "outage": lambda: outage(told.outage),
            "rebuild": lambda: rebuilt(server, told.tenants),
            "storms": storms,
            "pace": lambda: steady(server, told.pace),
            "in-process": in_process,
        }
        if unknown := set(told.rows) - set(rows):
            parser.error(f"no such row: {', '.join(unknown)}")
        kept = [rows[name]() for name in told.rows or rows]
    return 0 if all(kept) else 1


def overshoot(server: Valkey, seeds: int) -> bool:
    worst = {}
    for mode in MODES:
        results = [
            asyncio.run(run(Setting(mode, seed, 2.0), server.unix_url)) for seed in range(seeds)
        ]
        worst[mode] = max(result.overshoot for result in results)
        requests = sum(result.requests for result in results)
        print(
            f"overshoot, {mode:8} {worst[mode]:+8.1%} worst of {seeds} seeds, {requests} requests"
        )
    return worst["reserve"] <= 0 < worst["prompt"] < worst["after"]


def dense(server: Valkey, seeds: int) -> bool:
    """The most units over, and the most that the errors of requests open at once allow."""
    results = [asyncio.run(run(dense_setting(seed), server.unix_url)) for seed in range(seeds)]
    worst = max(results, key=lambda each: each.used - each.allowed - each.errors)
    print(
        f"dense prompts       {worst.used - worst.allowed:+} tokens over, {worst.errors} may be,"
        f" worst of {seeds} seeds, {sum(each.requests for each in results)} requests"
    )
    return worst.used - worst.allowed <= worst.errors


def utilisation(server: Valkey) -> bool:
    result = asyncio.run(run(UTILISATION, server.unix_url))
    used = result.used / result.allowed
    print(f"utilisation         {used:8.1%} of {result.allowed} tokens")
    return 0.95 <= used <= 1


def shared(server: Valkey, seeds: int) -> bool:
    worst = {}
    wasted = requests = 0
    for mode in leases.MODES:
        over = []
        for seed in range(seeds):
            # Every other run is killed into; what a dead process had taken is not waste.
            kill_s = 0.5 if mode == "leases" and seed % 2 else -1.0
            setting = leases.Setting(mode, seed, 2.0, kill_s=kill_s)
            result = asyncio.run(leases.run(setting, server.unix_url))
            over.append(result.overshoot)
            if mode == "leases":
                requests += result.requests
                wasted = max(wasted, result.unspent if kill_s < 0 else 0)
        worst[mode] = max(over)
        print(f"shared, {mode:11} {worst[mode]:+8.1%} worst of {seeds} seeds")
    most = leases.wasted_at_most(leases.Setting("leases", 0, 2.0))
    print(f"shared, unused      {wasted:8} tokens of {most} at most, {requests} requests")
    return worst["leases"] <= 0 < min(worst["deltas"], worst["leak"]) and wasted <= most


def histories(server: Valkey, steps: int) -> bool:
    taken, chance = 0, 0
    while taken < steps:
        examples = max(1, min(500, (steps - taken) // STEPS_EACH + 1))
        taken += walk(
            server.unix_url, server.admin, examples=examples, steps=STEPS_EACH, chance=chance
        )
        chance += 1
    print(f"histories           {taken} steps, both stores agree")
    return True


def honesty(server: Valkey, states: int) -> bool:
    tried, wrong = dishonest(server.unix_url, server.admin, states=states, chance=1)
    print(f"retry-after         {wrong} dishonest of {tried} refusals")
    return not wrong


def cancels(server: Valkey, wanted: int) -> bool:
    began_s = time.monotonic()
    outcome = asyncio.run(cancel(server, wanted))
    took_s = time.monotonic() - began_s
    print(
        f"cancelled, late     {outcome.lost}: {outcome.wrong} wrong, {outcome.leaked} leaked, {took_s:.0f} s"
    )
    return not outcome.wrong and not outcome.leaked


def outage(seconds: float) -> bool:
    kept = True
    for how in ("stopped", "killed"):
        seen = asyncio.run(break_off([how], seconds))
        wrong = seen.wrong()
        print(
            f"store {how:7} {seconds:.0f} s  {seen.admitted} admitted of {seen.asked} asked,"
            f" {seen.allowed:.0f} allowed; p99 {1000 * seen.p99_s:.0f} ms; money refused, back in"
            f" {seen.recovered_s:.2f} s, {seen.spent / seen.paid_in:.1%} of it spent"
            + "".join(f"; WRONG: {each}" for each in wrong)
        )
        kept = kept and not wrong
    return kept


def rebuilt(server: Valkey, tenants: int) -> bool:
    seen = uvloop.run(rebuild(server, tenants))
    print(
        f"balances rebuilt    {seen.tenants} tenants in {seen.seconds:.1f} s,"
        f" {seen.wrong} not as in SQL, none served before"
    )
    return not seen.wrong and seen.seconds <= MOST_REBUILD_S


def steady(server: Valkey, seconds: float) -> bool:
    seen = uvloop.run(pace(server, per_second=1_000, seconds=seconds))
    p50, p99 = seen.quantile_ms(0.5), seen.quantile_ms(0.99)
    print(
        f"1,000 a second      p50 {p50:.1f} ms, p99 {p99:.1f} ms;"
        f" server {seen.reserve_us:.0f} us a reserve, {seen.settle_us:.0f} us a settle"
    )
    return p99 <= MOST_P99_MS and seen.reserve_us <= MOST_RESERVE_US


def in_process() -> bool:
    took_us = asyncio.run(in_process_us())
    print(f"in process          {took_us:.1f} us a reserve and settle")
    return took_us <= MOST_IN_PROCESS_US


def storms() -> bool:
    """Through a whole gateway, with a store of its own."""
    engines = EngineThread()
    folder = Path(tempfile.mkdtemp(prefix="storm"))
    try:
        engine = engines.start(token_ms=1.0, faults=Faults(delay_s=storm.SILENCE_S))
        with running(folder / "data", unbilled_endings_per_minute=0, access_log="false") as gateway:
            keys = gateway.apply(storm.declared(engine.url))["keys"]
            held = asyncio.run(storm.rage(gateway, engine, keys[0]["secret"], STORM_S))
            free = asyncio.run(storm.rage(gateway, engine, keys[1]["secret"], STORM_S))
    finally:
        engines.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"abort storm         {held.reached} of {held.sent} reached the engine, {held.allowed:.0f} may; "
        f"without limits {free.reached} of {free.sent}"
    )
    return held.reached <= held.allowed < free.reached


if __name__ == "__main__":
    sys.exit(main())
