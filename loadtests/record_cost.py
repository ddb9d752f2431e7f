"""What a usage record costs the data loop: a request's slot and record, and a chunk's counts.

    python -m loadtests.record_cost [--requests N] [--chunks N]

A request here is what the desk does for it, in the order of its life: claim, reserving, reserved,
dispatched, the ending into the slot, the record encoded and appended, its settle queued, its mark
taken, the slot freed. Its own thread syncs the journal meanwhile, as in a data process. A chunk is
one progress store. The store's own work is not part of it: it acknowledges at once. CPU time of the
loop's thread, system calls and page faults included; best, median and worst of some rounds.
Promised: 6 us a request, 0.6 us a chunk.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway.exchange import Closing
from gateway.metering.board import Slot
from gateway.metering.desk import Desk
from gateway.metering.incarnation import Incarnation
from gateway.metering.journal import segment_paths
from gateway.metering.slots import ids_of
from quotas.limits import Charge, Limit
from quotas.ports import Settlement
from quotas.record import FORMAT_VERSION, AttemptEntry, UsageRecord

ROUNDS = 15
IDS = ids_of(1, 2, 3, 4, 5)
REQUEST_US, CHUNK_US = 6.0, 0.6
LIMITS = (
    Limit("t1", "tenant acme", "requests", "bucket", 600, 600, 1),
    Limit("t1", "tenant acme", "tokens", "bucket", 100_000, 100_000, 1),
    Limit("k3", "key acme/bot/ci", "concurrency", "concurrency", 50, 0, 1),
)


class AtOnce:
    """A store that acknowledges at once: the mark is taken, the store costs nothing."""

    name = "at once"

    def settle(self, _settlement: Settlement, done: Callable[[], None]) -> None:
        done()


def record_of(request_id: str) -> Closing:
    """A record as a stream of one attempt leaves it."""
    billed = {"input": 412, "cached_input": 100, "output": 87}
    charged = tuple(
        Charge(limit, amount) for limit, amount in zip(LIMITS, (1, 599, 0), strict=True)
    )
    settlement = Settlement("t1", request_id, "0" * 16, charged, billed)
    record = UsageRecord(
        v=FORMAT_VERSION,
        request_id=request_id,
        tenant_id=1,
        project_id=2,
        key_id=3,
        model_id=4,
        price_id=5,
        operation="chat",
        choices=1,
        prompts=1,
        reserved=False,
        prompt_estimate=0,
        cap=0,
        attempts=(
            AttemptEntry(6, "http://10.0.0.5:8000", 1_800_000_000_000, 1_800_000_001_500, 200,
                         512, 87, 1),
        ),
        usage={"prompt_tokens": 512, "cached_tokens": 100, "completion_tokens": 87,
               "reasoning_tokens": 0},
        billed=billed,
        source="engine_final",
        outcome="ok",
        status=200,
        started_ms=1_800_000_000_000,
        ttft_ms=80,
        total_ms=1_500,
        epoch=settlement.epoch,
        charged=charged,
    )  # fmt: skip
    return Closing(record, settlement)


def one_request(desk: Desk, request_id: bytes, closing: Closing) -> None:
    slot = desk.claim()
    slot.reserving(request_id, IDS, 0, 1, 1, 500, 256, 1_800_000_000_000)
    slot.reserved("0" * 16)
    slot.dispatched(0, 6, 1_800_000_000_004)
    desk.close(slot, closing)


def requests_us(life: Incarnation, desk: Desk, count: int) -> float:
    request_id = bytes(range(16))
    closing = record_of(request_id.hex())
    begun = time.thread_time_ns()
    for _ in range(count):
        one_request(desk, request_id, closing)
    took_us = (time.thread_time_ns() - begun) / 1000 / count
    life.journal.flush()
    for path in segment_paths(life.folder)[:-2]:
        path.unlink()  # as the shipper would
    return took_us


def chunks_us(slot: Slot, count: int) -> float:
    progress = slot.progress
    begun = time.thread_time_ns()
    for completion in range(count):
        progress(0, 512, completion)
    return (time.thread_time_ns() - begun) / 1000 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, metavar="N")
    parser.add_argument("--chunks", type=int, default=200_000, metavar="N")
    parser.add_argument("--data-dir", default=None, help="where the files lie")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.data_dir) as folder:
        life = Incarnation.create(Path(folder), 0, 4_096)
        desk = Desk(life.board, life.journal, AtOnce())  # type: ignore[arg-type]
        gc.collect()
        gc.freeze()
        requests = [requests_us(life, desk, asked.requests) for _ in range(ROUNDS)]
        slot = desk.claim()
        slot.reserving(bytes(16), IDS, 0, 1, 1, 500, 256, 1_800_000_000_000)
        slot.reserved("0" * 16)
        slot.dispatched(0, 6, 1_800_000_000_004)
        chunks = [chunks_us(slot, asked.chunks) for _ in range(ROUNDS)]
        desk.drop(slot)
        life.close()
    print("us, of", ROUNDS, "rounds        best   median    worst   promised")
    for name, each, promised in (
        ("a request's slot and record", requests, REQUEST_US),
        ("a chunk's counts", chunks, CHUNK_US),
    ):
        print(
            f"{name:28} {min(each):6.2f}   {statistics.median(each):6.2f}   {max(each):6.2f}"
            f"   {promised:6.2f}"
        )
    sys.exit(statistics.median(requests) > REQUEST_US or statistics.median(chunks) > CHUNK_US)


if __name__ == "__main__":
    main()
