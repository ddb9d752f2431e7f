"""The life of one request on board and journal, step by step, and what each step must leave behind
when the process dies right after it. Run as a module it is such a process, and kills itself.

    python -m tests.support.lives <data folder> <step>
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.metering.frames import pack_frame
from gateway.metering.incarnation import Incarnation
from gateway.metering.inquest import RecoveryContext
from gateway.metering.slots import ids_of
from quotas.charges import DIMENSIONS
from quotas.limits import Charge, Limit, charges_for
from quotas.record import FORMAT_VERSION, AttemptEntry, UsageRecord, encode

REQUEST_ID = bytes(range(16))
TENANT, PROJECT, KEY, MODEL, PRICE = 11, 12, 13, 14, 15
ESTIMATE, CAP, CHOICES, PROMPTS = 40, 100, 2, 1
RESERVED_TOKENS = ESTIMATE + PROMPTS * CHOICES * CAP
EPOCH = "epoch-7"
LIMITS = (
    Limit("t11", "tenant acme", "requests", "bucket", 100, 100, 1),
    Limit("k13", "key acme/chat/ci", "tokens", "bucket", 10_000, 10_000, 1),
    Limit("k13", "key acme/chat/ci", "concurrency", "concurrency", 10, 0, 1),
)
ENDPOINTS = {7: "http://one", 8: "http://two"}
CONTEXT = RecoveryContext(
    charges_of=lambda key_id, _model_id, amounts, _at_ms, _reserved: (
        charges_for(LIMITS, dict(zip(DIMENSIONS, amounts, strict=True))) if key_id == KEY else ()
    ),
    endpoint_name=lambda endpoint_id: ENDPOINTS.get(endpoint_id, ""),
    meters_of=lambda _model_id, _price_id: ("input", "output"),
    price_of=lambda _model_id, _price_id: None,
)


def charges(tokens: int) -> tuple[Charge, ...]:
    return tuple(
        Charge(limit, amount) for limit, amount in zip(LIMITS, (1, tokens, 0), strict=True)
    )


def now_ms() -> int:
    return int(time.time() * 1000)


def final_record(request_id: bytes, prompt: int, completion: int) -> UsageRecord:
    """What the living write of a request that ended well."""
    name = request_id.hex()
    billed = {"input": prompt, "output": completion}
    return UsageRecord(
        v=FORMAT_VERSION,
        request_id=name,
        tenant_id=TENANT,
        project_id=PROJECT,
        key_id=KEY,
        model_id=MODEL,
        price_id=PRICE,
        operation="chat",
        choices=2,
        prompts=1,
        reserved=False,
        prompt_estimate=0,
        cap=0,
        attempts=(AttemptEntry(8, "http://two", 1, 2, 200, prompt, completion, 2),),
        usage={
            "prompt_tokens": prompt,
            "cached_tokens": 0,
            "completion_tokens": completion,
            "reasoning_tokens": 0,
        },
        billed=billed,
        source="engine_final",
        outcome="ok",
        status=200,
        started_ms=now_ms(),
        ttft_ms=5,
        total_ms=9,
        epoch=EPOCH,
        charged=charges(prompt + completion),
    )


@dataclass(frozen=True)
class Left:
    """What a death right after a step leaves: counts None = no record; ``written``: recovery
    writes it; ``settles``: a settle is owed, for so many tokens; ``released``: a release is."""

    outcome: str | None = None
    source: str = "none"
    prompt: int = 0
    completion: int = 0
    attempts: int = 0
    written: bool = False
    settles: int | None = None
    released: bool = False


def _crash(source: str, prompt: int, completion: int, attempts: int, settles: int) -> Left:
    return Left("gateway_crash", source, prompt, completion, attempts, True, settles)


_ENDED = Left("ok", "engine_final", 10, 6, 2, True, 16)
_KEPT = Left("ok", "engine_final", 10, 6, 1, False, 16)
_SETTLED = Left("ok", "engine_final", 10, 6, 1, False, None)
#: The kill-point table of docs/metering.md.
STEPS: dict[str, Left] = {
    "claimed": Left(),
    "reserving": Left(released=True),
    "reserved": Left(released=True),
    "dispatched": _crash("none", 0, 0, 1, RESERVED_TOKENS),
    "attempt_failed": _crash("none", 0, 0, 1, RESERVED_TOKENS),
    "dispatched_again": _crash("none", 0, 0, 2, RESERVED_TOKENS),
    "prompt_seen": _crash("none", 0, 0, 2, 10),
    "half_torn_early": _crash("none", 0, 0, 2, 10),
    "counted": _crash("engine_partial", 10, 3, 2, 13),
    "counted_more": _crash("engine_partial", 10, 5, 2, 15),
    "half_torn": _crash("engine_partial", 10, 5, 2, 15),
    "ending_torn": _crash("engine_partial", 10, 6, 2, 16),
    "ended": _ENDED,
    "record_torn": _ENDED,
    "record_written": _KEPT,
    "mark_torn": _KEPT,
    "marked": _SETTLED,
    "freed": _SETTLED,
}


def live(incarnation: Incarnation, request_id: bytes = REQUEST_ID) -> Iterator[str]:
    """Yields the name of each step after it was done; torn steps write a part of what follows."""
    board, journal = incarnation.board, incarnation.journal
    slot = board.claim()
    assert slot is not None
    yield "claimed"
    slot.reserving(
        request_id,
        ids_of(TENANT, PROJECT, KEY, MODEL, PRICE),
        0,
        CHOICES,
        PROMPTS,
        ESTIMATE,
        CAP,
        now_ms(),
    )
    yield "reserving"
    slot.reserved(EPOCH)
    yield "reserved"
    slot.dispatched(0, 7, now_ms())
    yield "dispatched"
    slot.attempt_failed(0, 503, now_ms())
    yield "attempt_failed"
    slot.dispatched(1, 8, now_ms())
    yield "dispatched_again"
    slot.progress(1, 10, 0)
    yield "prompt_seen"
    _torn(board.map, slot.index, lambda: slot.progress(1, 10, 3))
    yield "half_torn_early"
    slot.progress(1, 10, 3)
    yield "counted"
    slot.progress(1, 10, 5)
    yield "counted_more"
    _torn(board.map, slot.index, lambda: slot.progress(1, 10, 6))
    yield "half_torn"
    slot.progress(1, 10, 6)
    ending = final_record(request_id, 10, 6)
    _torn(board.map, slot.index, lambda: slot.ended(ending))
    yield "ending_torn"
    slot.ended(ending)
    yield "ended"
    payload = encode(final_record(request_id, 10, 6))
    _torn_frame(incarnation, 1, payload)
    yield "record_torn"
    sequence = journal.append(payload)
    yield "record_written"
    _torn_frame(incarnation, 2, sequence.to_bytes(8, "little"))
    yield "mark_torn"
    journal.mark_settled(sequence)
    journal.flush()
    yield "marked"
    slot.free()
    yield "freed"


def _torn(mapping: memoryview, index: int, step: Callable[[], None]) -> None:
    """Do the step, then take back the last half of the bytes it changed, the state among them."""
    start, end = 4096 + index * 256, 4096 + (index + 1) * 256
    before = bytes(mapping[start:end])
    step()
    after = bytes(mapping[start:end])
    changed = [at for at in range(256) if before[at] != after[at]]
    changed.sort(key=lambda at: (at == 0, at))
    for at in changed[len(changed) // 2 :]:
        mapping[start + at] = before[at]


def _torn_frame(incarnation: Incarnation, kind: int, payload: bytes) -> None:
    journal = incarnation.journal
    frame = pack_frame(kind, journal._sequence + 1, payload)
    at = journal._make_room(len(frame))
    os.pwrite(journal._descriptor, frame[: len(frame) // 2], at)


def main() -> None:
    incarnation = Incarnation.create(Path(sys.argv[1]), 0, 16, 65_536)
    for step in live(incarnation):
        if step == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
