"""A chunked request body, decoded strictly and bounded. Pure: fed bytes, in any split.

Strict where two readers differ: no extensions, no trailers, sizes of hex digits alone, CR LF only.
Source: RFC 9112 section 7.1.
"""

import re

from gateway.contract.errors import BadRequestHead, BodyTooLarge

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\Z")
_LINE_MAX = 16


class ChunkedBody:
    """``feed`` until ``done``; what follows the body is in ``rest``."""

    __slots__ = ("_data", "_left", "_limit", "_size", "done", "parts", "rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""
        self._left = -1  # bytes of the open chunk, -1 between chunks
        self._size = 0
        self.parts: list[bytes] = []
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> None:
        """Raises ``BadRequestHead`` for broken framing, ``BodyTooLarge`` past the limit."""
        data = self._data + data if self._data else data
        at = 0
        while not self.done:
            if self._left < 0:
                end = data.find(b"\r\n", at, at + _LINE_MAX)
                if end < 0:
                    if len(data) - at >= _LINE_MAX or b"\n" in data[at:]:
                        raise BadRequestHead("a chunk size line is broken")
                    break
                line = data[at:end]
                if not _SIZE.match(line):
                    raise BadRequestHead("a chunk size is not a hex number")
                self._left = int(line, 16)
                self._size += self._left
                if self._size > self._limit:
                    raise BodyTooLarge(self._limit)
                at = end + 2
            if len(data) - at < self._left + 2:
                break
            if data[at + self._left : at + self._left + 2] != b"\r\n":
                raise BadRequestHead("a chunk does not end where its size says")
            if self._left == 0:
                self.done = True
            else:
                self.parts.append(data[at : at + self._left])
            at += self._left + 2
            self._left = -1
        self._data = b"" if self.done else data[at:]
        self.rest = data[at:] if self.done else b""
