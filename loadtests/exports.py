"""A million rows out, as CSV and as FOCUS: how fast, and in how much memory.

    python -m loadtests.exports [--records N] [--database sqlite|postgresql]

Wanted: memory that does not grow with the rows: at most 64 MiB above what the process had. Each
record gives one row of CSV and two of FOCUS.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from gateway.control.exports import Exports
from gateway.control.focus import Seller
from gateway.store.database import Database, open_database
from loadtests.ledger_rows import fill
from tests.support.postgres import serving
from tests.support.records import record

WANTED_BYTES = 64 << 20
USAGE = {"prompt_tokens": 1000, "cached_tokens": 0, "completion_tokens": 100}


async def nothing_waits() -> None:
    pass


async def stream(db: Database, query: str) -> tuple[int, int, int]:
    """(lines, bytes, the largest piece) of an export, thrown away piece by piece."""
    exports = Exports(db, nothing_waits, Seller("Token Factory"))
    answer = await exports.export(Request({"type": "http", "query_string": query.encode()}))
    assert isinstance(answer, StreamingResponse)
    lines = size = largest = 0
    async for piece in answer.body_iterator:
        lines += piece.count(b"\n")  # type: ignore[arg-type]
        size += len(piece)
        largest = max(largest, len(piece))
    return lines, size, largest


async def run(url: str | None, folder: Path, records: int) -> int:
    db = open_database(url, folder)
    await fill(db, records, record(1, usage=USAGE)[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wrong = 0
    for query in ("data=records", "data=records&format=jsonl", "data=focus"):
        begun_s = time.monotonic()
        lines, size, largest = await stream(db, query)
        took_s = time.monotonic() - begun_s
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        wrong += grown > WANTED_BYTES
        print(
            f"{query:28} {lines:,} lines, {size / 1e6:,.0f} MB in {took_s:.0f} s "
            f"({lines / took_s:,.0f} lines/s), largest piece {largest / 1e6:.1f} MB, "
            f"memory +{grown / 1e6:.0f} MB",
            flush=True,
        )
    await db.close()
    return int(wrong > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    asked: Any = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exports") as folder:
        if asked.database == "sqlite":
            sys.exit(asyncio.run(run(None, Path(folder), asked.records)))
        with serving() as server:
            sys.exit(asyncio.run(run(server.new_url(), Path(folder), asked.records)))


if __name__ == "__main__":
    main()
