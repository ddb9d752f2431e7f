"""An engine's ``/metrics`` text -> waiting, running, KV cache, token counters.

By byte search for the few names we want, not a parse: a vLLM exposition is 60 kB, we read six lines,
and it is read every second for every endpoint. Format: the Prometheus text exposition, 0.0.4.
Not here: fetching it (``gateway.control.probes``).
"""

import math
import re
from typing import Literal

import msgspec

from routing.topology import Dialect

Fold = Literal["sum", "mean", "max"]
Field = Literal["waiting", "running", "kv_used_fraction", "prompt", "generation", "started_s"]

#: What follows a name: labels (quoted values may hold braces), then the value.
_SAMPLE = re.compile(rb'(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+([^\s]+)')

#: Field -> how the series of several engines behind one endpoint become one number.
FOLDS: dict[Field, Fold] = {
    "waiting": "sum",
    "running": "sum",
    "kv_used_fraction": "mean",
    "prompt": "sum",
    "generation": "sum",
    "started_s": "max",
}

#: Names, the first one present wins. vLLM: recorded from 0.32; gpu_cache_usage_perc is what it was
#: called before, and clients older than OpenMetrics counters drop ``_total``.
VLLM_NAMES: dict[Field, tuple[bytes, ...]] = {
    "waiting": (b"vllm:num_requests_waiting",),
    "running": (b"vllm:num_requests_running",),
    "kv_used_fraction": (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    "prompt": (b"vllm:prompt_tokens_total", b"vllm:prompt_tokens"),
    "generation": (b"vllm:generation_tokens_total", b"vllm:generation_tokens"),
    "started_s": (b"process_start_time_seconds",),
}
#: NIM: from documentation, not run. Its published names have no prefix; NIM 2 has vLLM inside and
#: may well show vLLM's, so those are looked for too.
NIM_NAMES: dict[Field, tuple[bytes, ...]] = {
    "waiting": (b"num_requests_waiting", *VLLM_NAMES["waiting"]),
    "running": (b"num_requests_running", *VLLM_NAMES["running"]),
    "kv_used_fraction": (b"gpu_cache_usage_perc", *VLLM_NAMES["kv_used_fraction"]),
    "prompt": (b"prompt_tokens_total", *VLLM_NAMES["prompt"]),
    "generation": (b"generation_tokens_total", *VLLM_NAMES["generation"]),
    "started_s": VLLM_NAMES["started_s"],
}
#: The OpenAI dialect promises no metrics.
NAMES: dict[Dialect, dict[Field, tuple[bytes, ...]]] = {
    "vllm": VLLM_NAMES,
    "nim": NIM_NAMES,
    "openai": {},
}


class EngineCounters(msgspec.Struct, frozen=True):
    """The engine's own count since it started: what our records are reconciled with.

    ``started_s``: Unix seconds, changes when the engine restarts. None = not exposed.
    """

    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    started_s: float | None = None


class Exposition(msgspec.Struct, frozen=True):
    """What one scrape said. ``waiting`` and ``running`` in requests, summed over engines;
    ``kv_used_fraction`` in [0, 1], their mean. None = not exposed.
    """

    waiting: float | None = None
    running: float | None = None
    kv_used_fraction: float | None = None
    counters: EngineCounters = EngineCounters()


def read(dialect: Dialect, text: bytes) -> Exposition:
    """The wanted numbers of an exposition. Never raises: what is not there is None."""
    names = NAMES[dialect]
    lines = b"\n" + text
    found = {field: _first(lines, names.get(field, ()), fold) for field, fold in FOLDS.items()}
    kv_used = found["kv_used_fraction"]
    return Exposition(
        waiting=found["waiting"],
        running=found["running"],
        kv_used_fraction=None if kv_used is None else min(1.0, max(0.0, kv_used)),
        counters=EngineCounters(found["prompt"], found["generation"], found["started_s"]),
    )


def _first(lines: bytes, names: tuple[bytes, ...], fold: Fold) -> float | None:
    for name in names:
        values = _samples(lines, name)
        if values:
            return max(values) if fold == "max" else _added(values, fold)
    return None


def _added(values: list[float], fold: Fold) -> float:
    total = math.fsum(values)
    return total / len(values) if fold == "mean" else total


def _samples(lines: bytes, name: bytes) -> list[float]:
    """All finite values of a metric. A longer name that begins alike does not match."""
    values: list[float] = []
    wanted = b"\n" + name
    at = lines.find(wanted)
    while at >= 0:
        after = at + len(wanted)
        sample = _SAMPLE.match(lines, after)
        if sample is not None:
            try:
                value = float(sample[1])
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                values.append(value)
        at = lines.find(wanted, after)
    return values
