"""The meters that a price may price, and a record's counts spread over them without overlap.

A token is on one meter only: cached, written and reasoning tokens leave ``input`` and ``output``
exactly where the price names them. Not here: prices (``quotas.pricing``), where the counts come
from (``gateway.contract.usage``).
"""

from collections.abc import Container, Mapping

from quotas.money import MILLION

INPUT = "input"
CACHED_INPUT = "cached_input"
CACHE_WRITE = "cache_write"
OUTPUT = "output"
REASONING = "reasoning"
REQUESTS = "requests"
IMAGES = "images"
AUDIO_SECONDS = "audio_seconds"
EMBEDDING = "embedding"
RERANK = "rerank"

#: Meter -> units that its price is for: a million tokens, or one.
PER: dict[str, int] = {
    INPUT: MILLION,
    CACHED_INPUT: MILLION,
    CACHE_WRITE: MILLION,
    OUTPUT: MILLION,
    REASONING: MILLION,
    REQUESTS: 1,
    IMAGES: 1,
    AUDIO_SECONDS: 1,
    EMBEDDING: MILLION,
    RERANK: MILLION,
}
INPUT_METERS = (INPUT, CACHED_INPUT, CACHE_WRITE, EMBEDDING, RERANK)
OUTPUT_METERS = (OUTPUT, REASONING)
#: An operation whose prompt has a meter of its own, where the price names it.
_PROMPT_METER = {"embeddings": EMBEDDING, "rerank": RERANK}


def units_of(
    usage: Mapping[str, int], priced: Container[str], operation: str = "chat"
) -> dict[str, int]:
    """Units by meter. ``usage`` is a record's (prompt_tokens, cached_tokens, ...), ``priced`` the
    meters that the price names. ``input`` (or the operation's own) and ``output`` are always there.
    A record that counts nothing was no request to bill.

    >>> units_of({"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 2}, ("input",))
    {'input': 10, 'output': 2}
    """
    # What is part of something is never more than it, whatever an engine reports.
    prompt = usage.get("prompt_tokens", 0)
    completion = usage.get("completion_tokens", 0)
    main = _PROMPT_METER.get(operation, INPUT)
    units = {main if main in priced else INPUT: prompt}
    prompt_meter = next(iter(units))
    if CACHED_INPUT in priced:
        units[CACHED_INPUT] = cached = min(usage.get("cached_tokens", 0), prompt)
        units[prompt_meter] -= cached
    if CACHE_WRITE in priced:
        written = min(usage.get("cache_write_tokens", 0), units[prompt_meter])
        units[CACHE_WRITE] = written
        units[prompt_meter] -= written
    units[OUTPUT] = completion
    if REASONING in priced:
        units[REASONING] = reasoning = min(usage.get("reasoning_tokens", 0), completion)
        units[OUTPUT] -= reasoning
    if REQUESTS in priced:
        units[REQUESTS] = 1 if any(usage.values()) else 0
    for meter in (IMAGES, AUDIO_SECONDS):
        if meter in priced:
            units[meter] = usage.get(meter, 0)
    return units
