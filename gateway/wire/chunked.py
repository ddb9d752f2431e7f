"""A chunked request body, decoded strictly and bounded. Pure: fed bytes, in any split.

Strict where two readers differ: no extensions, no trailers, sizes of hex digits alone, CR LF only.
Every byte is copied once, however the chunks are cut; a body of many chunks is decoded some at a
time, and one of very many tiny ones is refused. Source: RFC 9112 section 7.1.
"""

import re

from gateway.contract.errors import BadRequestHead, BodyTooLarge

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_DIGITS = re.compile(rb"[0-9A-Fa-f]{0,8}\r?\Z")
_LINE_MAX = 16
_BETWEEN = -1
#: One turn of the loop: one or two milliseconds.
CHUNKS_PER_TURN = 1024
#: So many may be of any size; above, they hold 64 bytes on average, or decoding costs more than
#: sending does.
CHUNKS_FREE = 65_536
MEAN_BYTES_MIN = 64


class ChunkedBody:
    """``feed`` until ``done``; what follows the body is in ``rest``.

    ``behind``: it stopped for its turn with bytes unread; feed it nothing, or more, to go on.
    """

    __slots__ = ("_chunks", "_last", "_left", "_limit", "_size", "behind", "body", "done", "rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = _BETWEEN  # bytes to come of the open chunk
        self._last = False
        self._size = 0
        self._chunks = 0
        self.body = bytearray()
        self.rest = b""
        self.done = False
        self.behind = False

    def feed(self, data: bytes) -> None:
        """Raises ``BadRequestHead`` for broken framing, ``BodyTooLarge`` past the limit."""
        if self.rest:
            data = self.rest + data  # less than a line, unless it was behind
        at = 0
        until = self._chunks + CHUNKS_PER_TURN
        while self._chunks < until:
            if self._left == _BETWEEN:
                line = _SIZE.match(data, at)
                if line is None:
                    _judge_line(data[at : at + _LINE_MAX])
                    break
                at = line.end()
                self._open(int(line[1], 16))
            taken = data[at : at + self._left]
            self.body += taken
            at += len(taken)
            self._left -= len(taken)
            end = data[at : at + 2]
            if self._left or end in (b"", b"\r"):
                break
            if end != b"\r\n":
                raise BadRequestHead("a chunk does not end where its size says")
            at += 2
            if self._last:
                self.done = True
                break
            self._left = _BETWEEN
        self.behind = self._chunks >= until and not self.done and at < len(data)
        self.rest = data[at:]

    def _open(self, size: int) -> None:
        self._left = size
        self._last = size == 0
        self._size += size
        self._chunks += 1
        if self._size > self._limit:
            raise BodyTooLarge(self._limit)
        if self._chunks > CHUNKS_FREE and self._chunks * MEAN_BYTES_MIN > self._size and size:
            raise BadRequestHead("the body is cut into too many tiny chunks")


def _judge_line(line: bytes) -> None:
    """A size line that is not whole: it may still become one, or it is broken."""
    if not _DIGITS.match(line):
        raise BadRequestHead("a chunk size is not a hex number, or its line is broken")
