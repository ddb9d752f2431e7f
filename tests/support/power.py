"""What a power cut may leave of one life's files, and what recovery makes of it.

The model: the board's image is of any earlier moment (nothing syncs it), the journal's is cut at any
byte with the rest as it was allocated (a suffix that was not synced is lost), and the ledger may have
been shipped any of the records that were written. A case is one such picture.

Recovery knows of a journal's bytes what ``frames`` makes of them: the whole frames, and whether anything
lies behind the last. So the reader reads the image of every cut; files are laid out, recovered and shipped
once for each thing that it saw, and what came of that is judged for every picture by itself. A reader that
took a torn frame for a whole one would see something else at each byte.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.metering.backlog import SHIPPED
from gateway.metering.board import HEADER_BYTES
from gateway.metering.frames import FrameKind, is_clean, read_segment
from gateway.metering.incarnation import Incarnation
from gateway.metering.journal import segment_paths
from gateway.metering.shipper import Shipper
from gateway.metering.slots import SLOT_BYTES, SlotImage, SlotState, decode_slot
from quotas.record import UsageRecord, decode
from tests.support.ledgers import Ledger, Settles
from tests.support.lives import CONTEXT, RESERVED_TOKENS, STEPS, live

#: Two records fill one: the journal is cut on both sides of a turn.
SEGMENT_BYTES = 1_024
#: Engine's counts of a life at its end.
PROMPT, COMPLETION = 10, 6


@dataclass(frozen=True)
class History:
    """``boards``: the file after each step. ``steps``: by request id, the last one of each life by then. ``journal``: the segments at the end, one after the other, of
    which ``written`` bytes were. ``records``: (payload, record, end of its frame, sequence).
    """

    boards: tuple[bytes, ...]
    steps: tuple[dict[str, str], ...]
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
    boards, steps = [], []
    last: dict[str, str] = {}
    going = {number: live(incarnation, number.to_bytes(16)) for number in range(1, lives + 1)}
    try:
        turn = 0
        while going:
            for number in list(going):
                if turn < 3 * (number - 1):
                    continue
                step = next(going[number], None)
                if step is None:
                    del going[number]
                    continue
                last[number.to_bytes(16).hex()] = step
                steps.append(dict(last))
                boards.append((incarnation.folder / "board").read_bytes())
            turn += 1
        incarnation.journal.flush()
        segments = [path.read_bytes() for path in segment_paths(incarnation.folder)]
    finally:
        incarnation.close()
    frames = [
        (frame, number * SEGMENT_BYTES + frame.end)
        for number, data in enumerate(segments)
        for frame in read_segment(data)
    ]
    records = tuple(
        (frame.payload, decode(frame.payload), end, frame.sequence)
        for frame, end in frames
        if frame.kind == FrameKind.RECORD
    )
    return History(tuple(boards), tuple(steps), b"".join(segments), frames[-1][1], records)


def every_picture(past: History, boards: Iterable[int], cuts: Iterable[int]) -> Iterator[Picture]:
    """Each board with each cut, and each number of records that could have been shipped."""
    cuts = list(cuts)
    for board in boards:
        for cut in cuts:
            yield Picture(board, cut, 0)
            for shipped in range(1, len(past.records) + 1):
                yield Picture(board, cut, shipped)
                yield Picture(board, cut, shipped, marked=True)


class Pictures:
    """What recovery makes of pictures of one history. Files are laid out under ``data_dir``.

    ``recovered``: how many times it had to run.
    """

    def __init__(self, past: History, data_dir: Path) -> None:
        self._past = past
        self._data_dir = data_dir
        self._seen: dict[int, tuple[object, ...]] = {}
        self._after: dict[tuple[object, ...], _After] = {}
        self._open: dict[int, set[str]] = {}

    @property
    def recovered(self) -> int:
        return len(self._after)

    async def wrong_with(self, picture: Picture) -> list[str]:
        """Everything that must not be."""
        past = self._past
        what = (
            past.boards[picture.board],
            self._seen_at(picture.cut),
            picture.shipped,
            picture.marked,
        )
        after = self._after.get(what)
        if after is None:
            after = self._after[what] = await self._recover(picture)
        if picture.board not in self._open:
            self._open[picture.board] = _open_in(past.boards[picture.board])
        return [*after.wrong, *_wrong_rows(past, picture, self._open[picture.board], after.ledger)]

    def _seen_at(self, cut: int) -> tuple[object, ...]:
        """All that recovery can know of the journal's image."""
        if cut not in self._seen:
            found: list[object] = []
            for data in _segments(self._past, cut):
                frames = list(read_segment(data))
                clean = is_clean(data, frames[-1].end if frames else 0)
                whole = [(frame.kind, frame.sequence, frame.payload) for frame in frames]
                found += [tuple(whole), clean]
            self._seen[cut] = tuple(found)
        return self._seen[cut]

    async def _recover(self, picture: Picture) -> "_After":
        """Lay the picture out as a dead folder, recover and ship it."""
        past, data_dir = self._past, self._data_dir
        folder = data_dir / "run" / "20270115T000000000000Z-0-1-aaaaaaaa"
        folder.mkdir(parents=True)
        (folder / "board").write_bytes(past.boards[picture.board])
        for number, data in enumerate(_segments(past, picture.cut), 1):
            (folder / f"journal-{number:06d}.seg").write_bytes(data)
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
        shutil.rmtree(data_dir / "run", ignore_errors=True)
        wrong = [
            *(f"{name} has two payloads" for name in ledger.conflicts),
            *(f"{path.name} still owes" for path in left),
            *_wrong_settles(ledger, store),
        ]
        return _After(ledger, wrong)


@dataclass(frozen=True)
class _After:
    """The ledger when all is recovered and shipped, and what is wrong whatever was cut."""

    ledger: Ledger
    wrong: list[str]


def _segments(past: History, cut: int) -> list[bytes]:
    """The files' images: bytes up to the cut, and zeros as they were allocated."""
    image = past.journal[:cut].ljust(len(past.journal), b"\0")
    return [image[at : at + SEGMENT_BYTES] for at in range(0, len(image), SEGMENT_BYTES)]


def _wrong_rows(
    past: History, picture: Picture, open_then: set[str], ledger: Ledger
) -> Iterator[str]:
    """Invented: of a request no engine saw, or more than it counted. Lost: what the files still say."""
    truth = {record.request_id: payload for payload, record, *_ in past.records}
    shipped = {record.request_id for _, record, *_ in past.records[: picture.shipped]}
    # A frame that ends in zeros is whole without them: the file was zeros before.
    ends = {
        record.request_id: len(past.journal[:end].rstrip(b"\0"))
        for _, record, end, _ in past.records
    }
    whole = {name for name, end in ends.items() if end <= picture.cut}
    for name in ledger.rows.keys() - whole - open_then - shipped:
        yield f"{name} was never seen to be dispatched"
    steps = past.steps[picture.board]
    for name, row in ledger.rows.items():
        counts = (row.usage["prompt_tokens"], row.usage["completion_tokens"])
        if row.outcome == "gateway_crash":
            left = STEPS[steps[name]]
            if counts != (left.prompt, left.completion):
                yield f"{name} died when {steps[name]}, with {counts}"
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


def _open_in(board: bytes) -> set[str]:
    """Requests that a board's bytes show as dispatched or ended."""
    images = [
        decode_slot(board[at : at + SLOT_BYTES])
        for at in range(HEADER_BYTES, len(board), SLOT_BYTES)
    ]
    return {
        image.request_id
        for image in images
        if isinstance(image, SlotImage) and image.state >= SlotState.DISPATCHED
    }
