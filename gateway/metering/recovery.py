"""The slots of a dead data process, settled: releases, records, settles; each of them once.

Run in control (or offline) under the dead folder's lock. A slot not dispatched gives its
reservation back and leaves no record; a dispatched one gets the record of a crash; an ended one
the record of its ending. What is decided is written to that folder's journal and synced, and only
then is the slot freed, so being killed here means to be run again and to find it written. Not
here: what a slot means (``inquest``), shipping and the store's acknowledgements (``shipper``).
"""

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from gateway.metering.backlog import Backlog
from gateway.metering.board import free_slot, read_board
from gateway.metering.frames import FrameKind, Release
from gateway.metering.incarnation import BOARD, take_lock
from gateway.metering.inquest import (
    RecoveryContext,
    context_from,
    record_of,
    settlement_of,
)
from gateway.metering.journal import Journal
from gateway.metering.slots import SlotImage, SlotState, Torn
from quotas.charges import tag_of
from quotas.ports import Settlement
from quotas.record import decode, encode

__all__ = ["Known", "Recovered", "RecoveryContext", "context_from", "recover"]

#: Which of these request ids the ledger has.
Known = Callable[[list[str]], Awaitable[set[str]]]

_log = logging.getLogger(__name__)


class Recovered(msgspec.Struct):
    """A dead folder in hand, its slots free, its lock held until ``close``.

    ``records``: written now. ``torn``: slots nobody can read (a host crash; their reservations
    expire). ``released`` and ``settles``: all that the journal still waits for, by sequence,
    earlier ones included; a settle of None has nothing to settle and only wants its mark.
    ``unreadable``: sequences whose payload cannot be decoded (a newer version wrote it).
    """

    folder: Path
    journal: Journal
    backlog: Backlog
    lock_fd: int
    records: int
    torn: int
    released: list[tuple[int, Release]]
    settles: list[tuple[int, Settlement | None]]
    unreadable: list[int]

    def close(self) -> None:
        """Write the marks and let go of the folder."""
        try:
            self.journal.close()
        finally:
            os.close(self.lock_fd)


async def recover(folder: Path, *, known: Known, context: RecoveryContext) -> Recovered | None:
    """See the module. None: somebody holds the folder's lock, or it has gone.

    Raises what ``known`` raises, ``JournalFull`` and ``OSError``; the slots not freed by then are
    found again by the next try.
    """
    lock_fd = take_lock(folder)
    if lock_fd is None:
        return None
    with contextlib.ExitStack() as in_hand:
        in_hand.callback(os.close, lock_fd)
        backlog = Backlog(folder)
        journal = Journal.resume(folder, after=backlog.shipped)
        in_hand.callback(journal.close)
        slots = _slots_in_use(folder)
        records = await _write_down(journal, backlog, slots, known, context)
        journal.flush()
        for slot in slots:
            free_slot(folder / BOARD, slot.index)
        backlog.scan()
        owed = _owed(backlog)
        in_hand.pop_all()
    torn = sum(isinstance(slot, Torn) for slot in slots)
    return Recovered(folder, journal, backlog, lock_fd, records, torn, *owed)


def _slots_in_use(folder: Path) -> list[SlotImage | Torn]:
    """None when the board is missing (the folder is half made or half removed) or unreadable."""
    try:
        return read_board(folder / BOARD)
    except FileNotFoundError:
        return []
    except ValueError as error:
        _log.error("%s: %s; its open requests are lost", folder.name, error)
        return []


async def _write_down(
    journal: Journal,
    backlog: Backlog,
    slots: list[SlotImage | Torn],
    known: Known,
    context: RecoveryContext,
) -> int:
    """One frame a slot that journal and ledger know nothing of; the number of records.

    A record that the journal has is settled from there. One that only the ledger has (its segment
    was freed, or a power cut took the tail) is settled from the slot.
    """
    written = backlog.request_ids()
    images = [slot for slot in slots if isinstance(slot, SlotImage)]
    images = [image for image in images if image.request_id not in written]
    in_ledger = await known([image.request_id for image in images]) if images else set()
    records = 0
    for image in images:
        if image.request_id in in_ledger:
            settlement = settlement_of(image, context)
            journal.append(msgspec.msgpack.encode(settlement), FrameKind.SETTLE)
        elif image.state in (SlotState.RESERVING, SlotState.RESERVED):
            release = Release(tag_of(image.tenant_id), image.request_id)
            journal.append(msgspec.msgpack.encode(release), FrameKind.RELEASE)
        else:
            journal.append(encode(record_of(image, context)))
            records += 1
    return records


def _owed(
    backlog: Backlog,
) -> tuple[list[tuple[int, Release]], list[tuple[int, Settlement | None]], list[int]]:
    """Everything without a mark: releases, settles, and what cannot be decoded."""
    released: list[tuple[int, Release]] = []
    settles: list[tuple[int, Settlement | None]] = []
    unreadable: list[int] = []
    for sequence, entry in backlog.unsettled.items():
        payload = backlog.payload(entry)
        try:
            if entry.kind == FrameKind.RELEASE:
                released.append((sequence, msgspec.msgpack.decode(payload, type=Release)))
            elif entry.kind == FrameKind.SETTLE:
                settles.append((sequence, msgspec.msgpack.decode(payload, type=Settlement)))
            else:
                settles.append((sequence, decode(payload).settlement))
        except msgspec.MsgspecError as error:
            _log.error("frame %d of %s: %s", sequence, backlog.folder.name, error)
            unreadable.append(sequence)
    return released, settles, unreadable
