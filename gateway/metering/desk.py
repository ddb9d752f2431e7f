"""Where a request's books are opened and closed: slot, journal, settlement, in that order.

The order is the promise: final counts in the slot, the record written to the journal, then the
settle is queued, then the slot is free. A kill between any two of them is what recovery undoes.
Not here: what a record says (``gateway.exchange``), how bytes are kept (``board``, ``journal``).
"""

from collections import deque
from functools import partial

from gateway.contract.errors import NoCapacity
from gateway.exchange import Closing
from gateway.metering.board import Board, Slot
from gateway.metering.journal import Journal, JournalFull
from quotas.ports import QuotaStore
from quotas.record import UsageRecord, encode

#: A full board or journal is this process's own shortage; another try may find room soon.
RETRY_AFTER_S = 1.0


class Desk:
    """One per data process. Its hot path is a straight line of few calls: each costs as much as a store."""

    def __init__(self, board: Board, journal: Journal, store: QuotaStore) -> None:
        self._board = board
        self._free = board.free
        self._journal = journal
        self._store = store
        self._waiting: deque[tuple[Slot, Closing]] = deque()

    @property
    def open(self) -> int:
        """Slots in use."""
        return self._board.in_use

    def claim(self) -> Slot:
        """A slot for a request about to be reserved. Raises ``NoCapacity``: a request that could
        not be recorded is not served.
        """
        free = self._free
        if not free or not self._journal.admitting:
            raise NoCapacity(RETRY_AFTER_S)
        slot = free.pop()  # Board.claim, without the call
        slot.claimed = True
        return slot

    def drop(self, slot: Slot) -> None:
        """Nothing was reserved: the slot is free again."""
        slot.free()

    def give_up(self, slot: Slot, tag: str, reservation_id: str) -> None:
        """Reserved, or maybe reserved, and never dispatched: everything goes back. The slot is free
        once the store has said so: a kill before that is recovered from it.
        """
        self._store.release(tag, reservation_id, slot.free)

    def close(self, slot: Slot, closing: Closing) -> None:
        """Books of an ended exchange. Never raises for want of room: what cannot be written now
        stays in its slot and is tried again by ``retry``.
        """
        record, settlement = closing.record, closing.settlement
        if record is None:
            self.give_up(slot, settlement.tag, settlement.reservation_id)
            return
        journal = self._journal
        slot.ended(record)
        try:
            sequence = journal.append(encode(record))
        except JournalFull:
            self._waiting.append((slot, closing))
            return
        self._store.settle(settlement, partial(journal.mark_settled, sequence))
        slot.free()

    def note(self, slot: Slot, record: UsageRecord) -> None:
        """The ending into the slot. ``file`` follows, now or once better counts have come; who dies
        between them is recorded as noted.
        """
        slot.ended(record)

    def file(self, slot: Slot, closing: Closing) -> None:
        """The record into the journal, its settle queued, the slot free; or wait for room."""
        assert closing.record is not None
        journal = self._journal
        try:
            sequence = journal.append(encode(closing.record))
        except JournalFull:
            self._waiting.append((slot, closing))
            return
        self._store.settle(closing.settlement, partial(journal.mark_settled, sequence))
        slot.free()

    def retry(self) -> None:
        """Write what found no room before, and marks that no group of records took along; called on a
        timer.
        """
        for _ in range(len(self._waiting)):
            self.file(*self._waiting.popleft())
        self._journal.write_marks()
