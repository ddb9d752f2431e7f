"""A chunked request body, decoded strictly and bounded. Pure: fed bytes, in any split.

Strict where two readers differ: no extensions, no trailers, sizes of hex digits alone, CR LF only.
Its work is linear in the bytes, and bounded for bodies of tiny chunks. Source: RFC 9112 section 7.1.
"""

import re

from gateway.contract.errors import BadRequestHead, BodyTooLarge

_SIZE_LINE = re.compile(rb"[0-9A-Fa-f]{1,8}\r\n")
_SIZE_LINE_MAX = 10
#: A chunk costs a microsecond, however small: a body of single bytes is refused in time.
CHUNKS_MAX = 32_768


class ChunkedBody:
    """``feed`` until ``done``; what follows the body is in ``rest``. ``data``: decoded so far."""

    __slots__ = ("_chunks", "_held", "_left", "_limit", "data", "done", "rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = b""  # of a size line or a chunk's end, not all here
        self._left = 0  # payload bytes of the open chunk still to come
        self._chunks = 0
        self.data = bytearray()
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> None:
        """Raises ``BadRequestHead`` for broken framing, ``BodyTooLarge`` past the limit."""
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        while not self.done:
            if self._left:
                taken = data[at : at + self._left]
                self.data += taken
                self._left -= len(taken)
                at += len(taken)
                if self._left:
                    return
            # After a chunk its line end is read with the next size line: "\r\n5\r\n".
            head_at = at
            if self._chunks:
                if len(data) - at < 2:  # noqa: PLR2004 -- CR LF
                    break
                if data[at : at + 2] != b"\r\n":
                    raise BadRequestHead("a chunk does not end where its size says")
                head_at += 2
            line = _SIZE_LINE.match(data, head_at)
            if line is None:
                self._check_partial(data[head_at:])
                break
            at = line.end()
            if not self._open(int(line[0], 16)):
                if len(data) - at < 2:  # noqa: PLR2004 -- CR LF
                    at = head_at if not self._chunks else head_at - 2
                    break
                if data[at : at + 2] != b"\r\n":
                    raise BadRequestHead("a chunked body with trailers")
                self.done = True
                self.rest = data[at + 2 :]
                return
        self._held = data[at:]

    def _open(self, size: int) -> bool:
        """Begin a chunk; False for the last one."""
        if not size:
            return False
        self._left = size
        self._chunks += 1
        if len(self.data) + size > self._limit:
            raise BodyTooLarge(self._limit)
        if self._chunks > CHUNKS_MAX:
            raise BadRequestHead("a body of too many chunks")
        return True

    def _check_partial(self, line: bytes) -> None:
        """A size line that is not whole, or never will be."""
        digits = line.removesuffix(b"\r")
        hex_only = not digits.strip(b"0123456789abcdefABCDEF")
        if len(line) >= _SIZE_LINE_MAX or not hex_only or len(digits) > 8 or line == b"\r":  # noqa: PLR2004
            raise BadRequestHead("a chunk size is not a hex number")
