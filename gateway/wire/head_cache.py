"""Heads already judged: what a client says of itself hardly changes from request to request.

A verdict depends on a head's bytes alone, so the same bytes need no second look. Clients differ in
the length of their bodies from one request to the next, so the digits of a well-formed
Content-Length stand outside what is compared. Only heads that passed both readers are kept, up to a
bound. Not here: what makes a head pass (``gateway.wire.guard``).
"""

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.contract.errors import BadRequestHead
from gateway.settings import WireSettings
from gateway.wire.guard import Head, is_length, read_head

KEPT = 512
HEAD_BYTES_MAX = 2048
#: The first Content-Length that every reader reads alike.
_SIZED = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]++)\r\n")


class _Silent:
    """llhttp's callbacks are not needed: it only has to agree."""


class HeadCache:
    """One per server. ``read`` gives the same ``Head`` object for heads that are alike; ``exact``: the
    same for heads that were seen before to the last digit.
    """

    def __init__(self, settings: WireSettings) -> None:
        self._settings = settings
        self._sized: dict[bytes, Head] = {}  # by their bytes less the digits of the length
        self._whole: dict[bytes, Head] = {}
        self.exact: dict[bytes, tuple[Head, int | None]] = {}

    def read(self, data: bytes) -> tuple[Head, int | None]:
        """The head in ``data``, which ends with the empty line, and the body's length; None when it
        is chunked. Raises what the client did wrong.
        """
        exact = self.exact.get(data)
        if exact is not None:
            return exact
        key, length = _split(data)
        kept = self._whole if length is None else self._sized
        known = kept.get(key)
        if known is not None:
            return self._keep(data, known, known.length if length is None else length)
        head = read_head(data, self._settings)
        try:
            HttpRequestParser(_Silent()).feed_data(data)
        except HttpParserUpgrade:
            pass  # an offer to speak something else, which a server may ignore (RFC 9110 7.8)
        except HttpParserError:
            raise BadRequestHead("the head reads differently to another parser") from None
        if len(data) <= HEAD_BYTES_MAX:
            if len(kept) >= KEPT:
                kept.clear()
            kept[key] = head
        return head, head.length

    def _keep(self, data: bytes, head: Head, length: int | None) -> tuple[Head, int | None]:
        """Seen for the second time at least: perhaps the next one is the same to the last digit."""
        if len(self.exact) >= KEPT:
            self.exact.clear()
        found = self.exact[data] = (head, length)
        return found


def _split(data: bytes) -> tuple[bytes, int | None]:
    """The head without the digits of its first Content-Length, and their number; the head itself
    and None where there is none that every reader reads alike.
    """
    found = _SIZED.search(data)
    if found is None or not is_length(digits := found[1]):
        return data, None
    start, end = found.span(1)
    return data[:start] + data[end:], int(digits)
