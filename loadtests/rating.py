"""Rate a million records twice: the lines must be the same to the bit, at 50,000 rows/s or more.

    python -m loadtests.rating [rows]

The price has every kind of condition, so that no row takes a short cut. The short form is in
tests/quotas/test_pricing.py.
"""

import hashlib
import sys
import time
from collections.abc import Iterator

import msgspec

from quotas.pricing import Price, Rate, rate

ROWS = 1_000_000
WANTED_ROWS_S = 50_000
PRICE = Price(
    id=1,
    version=1,
    currency="USD",
    nano={
        "input": 100_000_000,
        "cached_input": 12_500_000,
        "output": 400_000_000,
        "reasoning": 600_000_000,
        "requests": 500,
    },
    conditional=(
        Rate(meter="output", nano=200_000_000, hours=(22, 6)),
        Rate(meter="input", nano=150_000_000, over_context_tokens=4_000),
    ),
    multiplier_ppm=950_000,
    time_zone="Europe/Berlin",
)


def usages(rows: int) -> Iterator[tuple[dict[str, int], int]]:
    for n in range(rows):
        usage = {
            "prompt_tokens": n * 37 % 5_003,
            "cached_tokens": n * 11 % 907,
            "completion_tokens": n * 13 % 1_777,
            "reasoning_tokens": n % 101,
        }
        yield usage, 1_800_000_000_000 + n * 997


def run(rows: int) -> tuple[str, int, float]:
    """(digest of all lines, their sum in nano-units, seconds spent rating)."""
    digest = hashlib.sha256()
    encode = msgspec.msgpack.Encoder().encode
    total, took_s = 0, 0.0
    batch: list[tuple[dict[str, int], int]] = []
    for each in usages(rows):
        batch.append(each)
        if len(batch) == 10_000:
            total, took_s = _rate(batch, digest.update, encode, total, took_s)
            batch.clear()
    total, took_s = _rate(batch, digest.update, encode, total, took_s)
    return digest.hexdigest(), total, took_s


def _rate(batch, update, encode, total, took_s):  # type: ignore[no-untyped-def]
    started_s = time.perf_counter()
    lines = [rate(PRICE, usage, "chat", at_ms) for usage, at_ms in batch]
    took_s += time.perf_counter() - started_s
    update(encode(lines))
    return total + sum(line.amount for each in lines for line in each), took_s


def main() -> int:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    first, again = run(rows), run(rows)
    rate_s = rows / max(first[2], again[2])
    same = first[:2] == again[:2]
    print(f"rows {rows:,}  sum {first[1]:,} nano  sha256 {first[0][:16]}")
    print(f"rated again: {'the same to the bit' if same else 'DIFFERENT'}")
    print(f"{rate_s:,.0f} rows/s (wanted {WANTED_ROWS_S:,})")
    return 0 if same and rate_s >= WANTED_ROWS_S else 1


if __name__ == "__main__":
    sys.exit(main())
