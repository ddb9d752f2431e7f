"""Journals to the ledger: every record of this host, once, whoever wrote it and however it died.

Runs in control, or offline. Each pass takes dead folders in hand (``recovery``), hands their
unacknowledged settles to the store again, inserts what is new, frees what owes nothing. A crash at
any point repeats work and never skips it: the ledger is unique by request id, the store settles
once. Transactional-outbox relaying, as in Richardson's "Microservices Patterns", with files for
the outbox. On one page though it is long: a pass, from top to bottom. Not here: the insert itself
(``gateway.store.ledger``).
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from gateway.metering.backlog import Backlog, Entry
from gateway.metering.incarnation import all_folders, remove_folder, sweep_unborn
from gateway.metering.journal import JournalFull
from gateway.metering.lag import Lag, lag_of
from gateway.metering.recovery import Known, Recovered, RecoveryContext, recover
from quotas.ports import QuotaStore
from quotas.record import UsageRecord, decode

#: Records of one transaction, which share what any transaction costs.
BATCH = 2_000
#: Batches of one folder in one pass: the others get their turn.
BATCHES_MAX = 10
#: A recovery that failed (the ledger is away, the disk is full) is tried again after this long.
RECOVERY_RETRY_S = 5.0
BACK_OFF_MAX_S = 5.0
#: Failed passes between two log lines about it: some minutes, once backed off.
SAY_AGAIN = 50
QUARANTINE = "quarantine"

#: Insert these (payload, record) pairs; those the ledger has already are no error. Raises only when
#: nothing can be inserted now (the database is away): what is wrong with one record is its business.
Insert = Callable[[list[tuple[bytes, UsageRecord]]], Awaitable[object]]

_log = logging.getLogger(__name__)


class _Folder:
    """A life this shipper reads; ``recovered`` once it is dead and in hand."""

    __slots__ = ("backlog", "recovered", "retry_at_s")

    def __init__(self, path: Path) -> None:
        self.backlog = Backlog(path)
        self.recovered: Recovered | None = None
        self.retry_at_s = 0.0


class Shipper:
    """One per data folder. ``store`` None: reservations lived in the memory of the dead process
    and went with it, so nothing is settled and marks are written at once. ``lanes``: inserts at once;
    more than one where the ledger works on a batch while the next is made ready.
    """

    def __init__(
        self,
        data_dir: Path,
        insert: Insert,
        store: QuotaStore | None,
        context: RecoveryContext,
        *,
        known: Known,
        lanes: int = 1,
    ) -> None:
        self._data_dir = data_dir
        self._insert = insert
        self._store = store
        self._context = context
        self._known = known
        self._lanes = lanes
        self._folders: dict[Path, _Folder] = {}
        self._pass = asyncio.Lock()
        self.shipped = 0  # records, since the start
        self.recovered = 0  # of them written here for the dead
        self.quarantined = 0

    async def ship_once(self) -> int:
        """One pass; the number of records inserted. Raises what ``insert`` raises.

        Folders of the dead that owe nothing are gone on return.
        """
        async with self._pass:
            self._discover()
            for folder in self._folders.values():
                await self._bury(folder)
            try:
                return sum([await self._ship(folder) for folder in self._folders.values()])
            finally:
                await self._tidy()

    async def run(self, interval_s: float = 0.25) -> None:
        """Passes without end; failures back off and lose nothing. Cancel to stop, then ``close``."""
        failures = 0
        while True:
            delay_s = interval_s
            try:
                full = await self.ship_once() >= BATCH
                delay_s = 0.0 if full else interval_s
                if failures:
                    _log.info("the ledger is back after %d failed passes", failures)
                failures = 0
            except Exception as error:  # noqa: BLE001 -- the ledger's driver raises its own kinds
                delay_s = min(BACK_OFF_MAX_S, interval_s * 2 ** min(failures, 10))
                if failures % SAY_AGAIN == 0:
                    _log.error("records wait in the journal: %s", type(error).__name__)
                    _log.debug("where they wait", exc_info=error)
                failures += 1
            await asyncio.sleep(delay_s)

    @property
    def drained(self) -> bool:
        """Nothing is owed by anybody as of the last pass; living folders may remain."""
        return not any(
            folder.backlog.unshipped or folder.backlog.unsettled
            for folder in self._folders.values()
        )

    def unsettled_of(self, tag: str) -> tuple[str, ...]:
        """Request ids of a tenant that the ledger has and the store has not acknowledged, as of the
        last pass.
        """
        found = []
        for folder in self._folders.values():
            backlog = folder.backlog
            for entry in list(backlog.unsettled.values()):
                if entry.sequence > backlog.shipped:
                    continue
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    settlement = decode(backlog.payload(entry)).settlement
                    if settlement is not None and settlement.tag == tag:
                        found.append(settlement.reservation_id)
        return tuple(found)

    def lag(self) -> Lag:
        """As of the last pass."""
        return lag_of([folder.backlog for folder in self._folders.values()])

    def count_unreadable(self) -> int:
        """Payloads put aside as files and not dealt with yet: an operator removes the file."""
        kept = self._data_dir / QUARANTINE
        return sum(1 for _ in kept.glob("*.record")) if kept.is_dir() else 0

    async def close(self) -> None:
        """Write the marks that came and let go of the folders in hand."""
        async with self._pass:
            for folder in self._folders.values():
                if folder.recovered is not None:
                    await asyncio.to_thread(folder.recovered.close)
            self._folders.clear()

    def _discover(self) -> None:
        sweep_unborn(self._data_dir)
        there = all_folders(self._data_dir)
        for path in there:
            if path not in self._folders:
                self._folders[path] = _Folder(path)
        for path in self._folders.keys() - set(there):
            gone = self._folders.pop(path)
            if gone.recovered is not None:
                gone.recovered.close()

    async def _bury(self, folder: _Folder) -> None:
        """Take a dead life in hand and queue what it owes the store. Failures wait their turn."""
        if folder.recovered is not None or time.monotonic() < folder.retry_at_s:
            return
        path = folder.backlog.folder
        try:
            found = await recover(path, known=self._known, context=self._context)
        except Exception as error:  # noqa: BLE001 -- the ledger's driver, the disk
            _log.error("%s cannot be recovered yet: %s", path.name, type(error).__name__)
            _log.debug("where it cannot", exc_info=error)
            folder.retry_at_s = time.monotonic() + RECOVERY_RETRY_S
            return
        if found is None:
            return  # it lives
        folder.recovered = found
        folder.backlog = found.backlog
        self.recovered += found.records
        if found.records or found.torn or found.released:
            _log.warning(
                "%s died with requests open: %d recorded, %d given back, %d unreadable",
                path.name,
                found.records,
                len(found.released),
                found.torn,
            )
        self._settle(found)

    def _settle(self, found: Recovered) -> None:
        """Everything without a mark goes to the store again; the marks follow its word."""
        for sequence, release in found.released:
            done = partial(found.journal.mark_settled, sequence)
            if self._store is None:
                done()
            else:
                self._store.release(release.tag, release.reservation_id, done)
        for sequence, settlement in found.settles:
            done = partial(found.journal.mark_settled, sequence)
            if self._store is None or settlement is None:
                done()
            else:
                self._store.settle(settlement, done)

    async def _ship(self, folder: _Folder) -> int:
        """Insert what is new, and remember how far: in order, however many batches are under way."""
        backlog = folder.backlog
        await asyncio.to_thread(backlog.scan)
        entering: deque[tuple[list[tuple[Entry, bytes]], asyncio.Future[int]]] = deque()
        inserted = 0
        try:
            for _ in range(BATCHES_MAX):
                ahead = sum(len(taken) for taken, _ in entering)
                taken = await asyncio.to_thread(backlog.take, BATCH, ahead)
                if not taken:
                    break
                entering.append((taken, asyncio.ensure_future(self._enter(backlog, taken))))
                if len(entering) == self._lanes:
                    inserted += await _entered(backlog, entering)
            while entering:
                inserted += await _entered(backlog, entering)
        finally:
            for _, entry in entering:
                entry.cancel()
            await asyncio.gather(*(entry for _, entry in entering), return_exceptions=True)
        self.shipped += inserted
        return inserted

    async def _enter(self, backlog: Backlog, taken: list[tuple[Entry, bytes]]) -> int:
        """One batch into the ledger; how many records it had."""
        records = [pair for pair in map(self._decoded, taken) if pair is not None]
        if len(records) < len(taken):
            self._quarantine(backlog, taken)
        if records:
            await self._insert(records)
        return len(records)

    def _decoded(self, taken: tuple[Entry, bytes]) -> tuple[bytes, UsageRecord] | None:
        try:
            return taken[1], decode(taken[1])
        except msgspec.MsgspecError:
            return None

    def _quarantine(self, backlog: Backlog, taken: list[tuple[Entry, bytes]]) -> None:
        """Payloads this version cannot read are kept as files, so that nothing waits for them."""
        kept = self._data_dir / QUARANTINE
        kept.mkdir(mode=0o700, exist_ok=True)
        for entry, payload in taken:
            if self._decoded((entry, payload)) is None:
                path = kept / f"{backlog.folder.name}-{entry.sequence}.record"
                path.write_bytes(payload)
                self.quarantined += 1
                _log.error("a record that cannot be read was put aside as %s", path.name)

    async def _tidy(self) -> None:
        """Free segments; write marks for the dead; remove folders that owe nothing."""
        for path, folder in list(self._folders.items()):
            backlog, found = folder.backlog, folder.recovered
            try:
                backlog.free()
                if found is None:
                    continue
                if not backlog.unshipped:
                    for sequence in found.unreadable:  # put aside, and nobody can settle them
                        found.journal.mark_settled(sequence)
                    found.unreadable.clear()
                if backlog.unsettled:
                    await asyncio.to_thread(found.journal.flush)
                    backlog.scan()
                if not backlog.unsettled and not backlog.unshipped:
                    del self._folders[path]
                    _remove(found)
            except (OSError, JournalFull) as error:
                _log.error("%s cannot be tidied: %s", path.name, error)


async def _entered(
    backlog: Backlog, entering: deque[tuple[list[tuple[Entry, bytes]], asyncio.Future[int]]]
) -> int:
    """The oldest batch under way is in. Where it fails, the ones after it are shipped again: the
    ledger knows them.
    """
    taken, entry = entering[0]
    records = await entry
    entering.popleft()
    backlog.shipped_to(taken[-1][0].sequence)
    return records


def _remove(found: Recovered) -> None:
    found.journal.close()
    try:
        remove_folder(found.folder)
    finally:
        os.close(found.lock_fd)
