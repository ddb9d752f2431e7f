"""What a power cut may leave of one life's files, and what recovery makes of it.

The model: the board's image is of any earlier moment (nothing syncs it), the journal's is cut at any
byte with the rest as it was allocated (a suffix that was not synced is lost), and the ledger may have
been shipped any of the records that were written. A case is one such picture.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.metering.backlog import SHIPPED
from gateway.metering.board import HEADER_BYTES
from gateway.metering.frames import FrameKind, read_segment
from gateway.metering.incarnation import Incarnation
from gateway.metering.shipper import Shipper
from gateway.metering.slots import SLOT_BYTES, SlotImage, SlotState, decode_slot
from quotas.record import UsageRecord, decode
from tests.support.ledgers import Ledger, Settles
from tests.support.lives import CONTEXT, RESERVED_TOKENS, live

SEGMENT_BYTES = 8_192
FIRST_SEGMENT = "journal-000001.seg"
#: Engine's counts of a life at its end, and after each of its steps that changes them.
PROMPT, COMPLETION = 10, 6


@dataclass(frozen=True)
class History:
    """``boards``: the file after each step. ``journal``: the segment at the end, ``written`` bytes of
    it. ``records``: (payload, record, end of its frame, sequence).
    """

    boards: tuple[bytes, ...]
    journal: bytes
    written: int
    records: tuple[tuple[bytes, UsageRecord, int, int], ...]


@dataclass(frozen=True)
class Picture:
    """``board``: the moment its image is of; ``cut``: journal bytes that are left; ``shipped``: how
    many records the ledger has; ``marked``: the shipper's own mark of them is left too."""

    board: int
    cut: int
    shipped: int
    marked: bool = False


def history(data_dir: Path, lives: int = 2) -> History:
    """Some lives, each three steps behind the one before, in one incarnation."""
    incarnation = Incarnation.create(data_dir / "alive", 0, 16, SEGMENT_BYTES)
    boards = []
    going = {number: live(incarnation, number.to_bytes(16)) for number in range(1, lives + 1)}
    try:
        turn = 0
        while going:
            for number in list(going):
                if turn < 3 * (number - 1):
                    continue
                if next(going[number], None) is None:
                    del going[number]
                    continue
                boards.append((incarnation.folder / "board").read_bytes())
            turn += 1
        incarnation.journal.flush()
        journal = (incarnation.folder / FIRST_SEGMENT).read_bytes()
    finally:
        incarnation.close()
    frames = list(read_segment(journal))
    records = tuple(
        (frame.payload, decode(frame.payload), frame.end, frame.sequence)
        for frame in frames
        if frame.kind == FrameKind.RECORD
    )
    return History(tuple(boards), journal, frames[-1].end, records)


def every_picture(past: History, boards: Iterable[int], cuts: Iterable[int]) -> Iterator[Picture]:
    """Each board with each cut, and each number of records that could have been shipped."""
    cuts = list(cuts)
    for board in boards:
        for cut in cuts:
            yield Picture(board, cut, 0)
            for shipped in range(1, len(past.records) + 1):
                yield Picture(board, cut, shipped)
                yield Picture(board, cut, shipped, marked=True)


async def wrong_with(past: History, picture: Picture, data_dir: Path) -> list[str]:
    """Lay the picture out as a dead folder, recover and ship it; everything that must not be."""
    folder = data_dir / "run" / "20270115T000000000000Z-0-1-aaaaaaaa"
    folder.mkdir(parents=True)
    (folder / "board").write_bytes(past.boards[picture.board])
    segment = folder / FIRST_SEGMENT
    segment.write_bytes(past.journal[: picture.cut])
    os.truncate(segment, SEGMENT_BYTES)
    if picture.marked:
        (folder / SHIPPED).write_text(f"{past.records[picture.shipped - 1][3]}\n")
    ledger, store = Ledger(), Settles()
    await ledger.insert(
        [(payload, record) for payload, record, *_ in past.records[: picture.shipped]]
    )
    shipper = Shipper(data_dir, ledger.insert, store, CONTEXT, known=ledger.known)
    await shipper.ship_once()
    await shipper.ship_once()
    left = list((data_dir / "run").iterdir())
    await shipper.close()
    return [
        *(f"{name} has two payloads" for name in ledger.conflicts),
        *(f"{path.name} still owes" for path in left),
        *_wrong_rows(past, picture, ledger),
        *_wrong_settles(ledger, store),
    ]


def _wrong_rows(past: History, picture: Picture, ledger: Ledger) -> Iterator[str]:
    """Invented: of a request no engine saw, or more than it counted. Lost: what the files still say."""
    truth = {record.request_id: payload for payload, record, *_ in past.records}
    shipped = {record.request_id for _, record, *_ in past.records[: picture.shipped]}
    whole = {record.request_id for _, record, end, _ in past.records if end <= picture.cut}
    open_then = {
        slot.request_id
        for slot in _slots(past.boards[picture.board])
        if slot.state >= SlotState.DISPATCHED
    }
    for name in ledger.rows.keys() - whole - open_then - shipped:
        yield f"{name} was never seen to be dispatched"
    for name, row in ledger.rows.items():
        counts = (row.usage["prompt_tokens"], row.usage["completion_tokens"])
        if counts[0] > PROMPT or counts[1] > COMPLETION:
            yield f"{name} has {counts}"
        if row.outcome != "gateway_crash" and counts != (PROMPT, COMPLETION):
            yield f"{name} ended {row.outcome} with {counts}"
        if row.outcome == "gateway_crash" and ledger.payloads[name] == truth.get(name):
            yield f"{name} has an ending of its own"
    for name in (whole | open_then) - ledger.rows.keys():
        yield f"{name} is lost"
    for payload, record, end, _ in past.records:
        if end <= picture.cut and ledger.payloads.get(record.request_id) != payload:
            yield f"{record.request_id} was altered"


def _wrong_settles(ledger: Ledger, store: Settles) -> Iterator[str]:
    amounts: dict[str, set[int]] = {}
    for settlement in store.settled:
        # "+": a slot that was cut off before its epoch is charged in full, under a name of its own.
        name = settlement.reservation_id.removesuffix("+")
        amounts.setdefault(name, set()).add(settlement.charged[1].amount)
    for name, charged in amounts.items():
        if name not in ledger.rows:
            yield f"{name} was settled without a record"
        if len(charged) > 1:
            yield f"{name} was settled with {sorted(charged)}"
        if max(charged) > RESERVED_TOKENS:
            yield f"{name} was charged {max(charged)}"
    for _, name in store.released:
        if name in amounts:
            yield f"{name} was settled and given back"


def _slots(board: bytes) -> list[SlotImage]:
    """The slots in use of a board's bytes."""
    images = [
        decode_slot(board[at : at + SLOT_BYTES])
        for at in range(HEADER_BYTES, len(board), SLOT_BYTES)
    ]
    return [image for image in images if isinstance(image, SlotImage)]
