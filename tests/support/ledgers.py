"""A ledger and a store that remember what they were told, for proofs about who told it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quotas.limits import Charge, Verdict
from quotas.ports import Settlement
from quotas.record import UsageRecord


class LedgerAway(Exception):
    pass


class Ledger:
    """Unique by request id, as the database is. ``away``: every call fails. ``offered`` counts
    each offer of a record; ``conflicts`` are ids offered with two payloads."""

    def __init__(self) -> None:
        self.rows: dict[str, UsageRecord] = {}
        self.payloads: dict[str, bytes] = {}
        self.offered: dict[str, int] = {}
        self.conflicts: list[str] = []
        self.away = False

    async def insert(self, records: list[tuple[bytes, UsageRecord]]) -> int:
        if self.away:
            raise LedgerAway
        for payload, record in records:
            name = record.request_id
            self.offered[name] = self.offered.get(name, 0) + 1
            if self.payloads.setdefault(name, payload) != payload:
                self.conflicts.append(name)
            self.rows.setdefault(name, record)
        return len(records)

    async def known(self, request_ids: list[str]) -> set[str]:
        if self.away:
            raise LedgerAway
        return self.rows.keys() & set(request_ids)


class Settles:
    """A store's settling half. It acknowledges at once, or when told to while ``holding``."""

    name = "remembering"

    def __init__(self) -> None:
        self.settled: list[Settlement] = []
        self.released: list[tuple[str, str]] = []
        self.holding = False
        self._held: list[Callable[[], None]] = []

    def settle(self, settlement: Settlement, done: Callable[[], None] | None = None) -> None:
        self.settled.append(settlement)
        self._acknowledge(done)

    def release(
        self, tag: str, reservation_id: str, done: Callable[[], None] | None = None
    ) -> None:
        self.released.append((tag, reservation_id))
        self._acknowledge(done)

    def acknowledge(self) -> None:
        held, self._held = self._held, []
        for done in held:
            done()

    async def reserve(
        self, tag: str, reservation_id: str, charges: Sequence[Charge], ttl_s: int
    ) -> Verdict:
        raise NotImplementedError("the dead reserve nothing")

    def expire(self, tag: str, reservation_id: str) -> None:
        raise NotImplementedError("only owners expire")

    async def flush(self, timeout_s: float, part: str | None = None) -> bool:
        return not self._held

    async def ping(self, part: str | None = None) -> float:
        return 0.0

    async def close(self) -> None:
        self._held.clear()

    def _acknowledge(self, done: Callable[[], None] | None) -> None:
        if done is None:
            return
        if self.holding:
            self._held.append(done)
        else:
            done()


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where the host has one: a sync costs nothing there."""
    shm = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="tf-", dir=shm if shm.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
