"""Server-sent events as whole frames: bytes in, the same bytes out, cut where an event ends.

A frame is an event with its blank line, in LF, CRLF, CR or any mix, or leading comments and blank
lines, so that an event's frame always starts with its first field. Nothing is decoded here.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
"""

import re
from enum import StrEnum

from gateway.contract.errors import UpstreamError

FRAME_BYTES_MAX = 1 << 20
#: Two line ends in a row. Atomic: CRLF is one line end, never a CR and then an LF.
BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
#: What may stand before an event: comments and blank lines, each a whole line.
LEAD = re.compile(rb"(?>(?:(?::[^\r\n]*+)?(?>\r\n|\n|\r))+)")
LINE_END = re.compile(rb"\r\n|\n|\r")
DONE = b"[DONE]"
#: A blank line is at most four bytes, so three of them may hide at the end of what is held.
TAIL_BYTES = 3


class Kind(StrEnum):
    """What a frame is to a stream of JSON objects. ``OTHER`` has no data: comments, lone fields."""

    OBJECT = "object"
    DONE = "done"
    OTHER = "other"
    GARBLED = "garbled"


class FrameTooLarge(UpstreamError):
    """An event of more than ``FRAME_BYTES_MAX`` bytes."""

    def __init__(self) -> None:
        super().__init__("The model sent an event that is too large.")


class FrameSplitter:
    """Mutable. ``feed`` any bytes in order; time is linear in the bytes fed, however they are cut.

    ``pending``: bytes held back because their event is not complete.
    """

    __slots__ = ("_held", "_tail", "pending")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._tail = b""
        self.pending = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now; joined with what is held they are the bytes fed.

        Raises ``FrameTooLarge``; the splitter is of no use after that.
        """
        if not self.pending:
            # The steady state: one read is one event of one line.
            length = len(data)
            if (
                data[-2:] == b"\n\n"
                and data.find(b"\n") == length - 2
                and data[:1] == b"d"
                and b"\r" not in data
                and length <= FRAME_BYTES_MAX
            ):
                return [data]
            return self._split(data, 0)
        window = self._tail + data
        found = BLANK_LINE.search(window)
        if found is None:
            self._hold(data)
            return []
        # A blank line held back whole would have been found before: this one ends in ``data``.
        end = found.end() - len(self._tail)
        self._held.append(data[:end])
        frame = b"".join(self._held)
        self._release()
        frames: list[bytes] = []
        self._add(frame, frames)
        return self._split(data, end, frames)

    def finish(self) -> bytes:
        """What never became an event; the splitter is empty afterwards."""
        left = b"".join(self._held)
        self._release()
        return left

    def _split(self, data: bytes, start: int, frames: list[bytes] | None = None) -> list[bytes]:
        out: list[bytes] = [] if frames is None else frames
        if b"\r" in data:
            for found in BLANK_LINE.finditer(data, start):
                self._add(data[start : found.end()], out)
                start = found.end()
        else:
            while (at := data.find(b"\n\n", start)) >= 0:
                self._add(data[start : at + 2], out)
                start = at + 2
        if start < len(data):
            self._hold(data[start:])
        return out

    def _add(self, frame: bytes, out: list[bytes]) -> None:
        if len(frame) > FRAME_BYTES_MAX:
            raise FrameTooLarge
        if frame[0] in b":\r\n":
            lead = LEAD.match(frame)
            if lead is not None and lead.end() < len(frame):
                out += (frame[: lead.end()], frame[lead.end() :])
                return
        out.append(frame)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self.pending += len(data)
        if self.pending > FRAME_BYTES_MAX:
            raise FrameTooLarge
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    def _release(self) -> None:
        self._held.clear()
        self._tail = b""
        self.pending = 0


def kind_of(frame: bytes) -> Kind:
    """By its first and last byte of data; what stands between is not looked at."""
    data = data_of(frame)
    if data is None:
        return Kind.OTHER
    data = data.strip()
    if data[:1] == b"{" and data[-1:] == b"}":
        return Kind.OBJECT
    return Kind.DONE if data.startswith(DONE) else Kind.GARBLED


def data_of(frame: bytes) -> bytes | None:
    """The data of an event, its lines joined as the standard says; None where it has none."""
    if frame[:1] == b"d" and frame.find(b"\n") == len(frame) - 2 and b"\r" not in frame:
        lines = [frame[:-2]]
    else:
        lines = LINE_END.split(frame)
    data = [
        line[5:].removeprefix(b":").removeprefix(b" ")
        for line in lines
        if line[:5] == b"data:" or line == b"data"
    ]
    return b"\n".join(data) if data else None
