"""Usage records that differ in what a test says, and the fields that readers see."""

from typing import Any

import msgspec

from quotas.record import FORMAT_VERSION, AttemptEntry, Outcome, Source, UsageRecord, encode

START_MS = 1_800_000_000_000
FIELDS = [
    "request_id", "tenant", "project", "key", "model", "endpoint", "attempts", "choices",
    "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "source",
    "outcome", "status", "ttft_ms", "total_ms", "unbilled_ms", "price_version",
    "attempt_log", "started_at",
]  # fmt: skip


def record(number: int, **fields: Any) -> tuple[bytes, UsageRecord]:
    made = value(number, **fields)
    return encode(made), made


def value(number: int, **fields: Any) -> UsageRecord:
    made = UsageRecord(
        v=FORMAT_VERSION,
        request_id=f"{number:032x}",
        tenant_id=1,
        project_id=1,
        key_id=1,
        model_id=1,
        price_id=1,
        operation="chat",
        choices=1,
        prompts=1,
        reserved=False,
        prompt_estimate=0,
        cap=0,
        attempts=(AttemptEntry(1, "http://10.0.0.5:8000", START_MS, START_MS, 200, 10, 3, 1),),
        usage={"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 3},
        billed={"input": 6, "cached_input": 4, "output": 3},
        source="engine_final",
        outcome="ok",
        status=200,
        started_ms=START_MS + number,
        ttft_ms=5,
        total_ms=9,
    )
    return msgspec.structs.replace(made, **fields)


def ending(
    outcome: Outcome, source: Source, counts: tuple[int, int, int, int], times_ms: tuple[int, int]
) -> UsageRecord:
    """A record as its slot is told of it. ``counts``: prompt, cached, completion, reasoning;
    ``times_ms``: to the first event, and in all.
    """
    meters = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    usage = dict(zip(meters, counts, strict=True))
    ttft_ms, total_ms = times_ms
    fields = {"usage": usage, "ttft_ms": ttft_ms, "total_ms": total_ms}
    return value(1, outcome=outcome, source=source, **fields)
