"""Heads already judged: what a client says of itself hardly changes from request to request.

A verdict depends on a head's bytes alone, so the same bytes need no second look. Clients differ in
the length of their bodies from one request to the next, so the digits of a well-formed
Content-Length stand outside what is compared. Only heads that passed both readers are kept, up to a
bound. Not here: what makes a head pass (``gateway.wire.guard``).
"""

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.contract.errors import BadRequestHead
from gateway.settings import WireSettings
from gateway.wire.guard import Head, is_length, read_head

KEPT = 512
HEAD_BYTES_MAX = 2048
_NAMES = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_NAME_BYTES = len(_NAMES[0])


class _Silent:
    """llhttp's callbacks are not needed: it only has to agree."""


class HeadCache:
    """One per server. ``read`` gives the same ``Head`` object for heads that are alike."""

    def __init__(self, settings: WireSettings) -> None:
        self._settings = settings
        self._sized: dict[bytes, Head] = {}  # by their bytes less the digits of the length
        self._whole: dict[bytes, Head] = {}

    def read(self, data: bytes) -> tuple[Head, int | None]:
        """The head in ``data``, which ends with the empty line, and the body's length; None when it
        is chunked. Raises what the client did wrong.
        """
        key, length = _split(data)
        kept = self._whole if length is None else self._sized
        known = kept.get(key)
        if known is not None:
            return known, known.length if length is None else length
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


def _split(data: bytes) -> tuple[bytes, int | None]:
    """The head without the digits of its first Content-Length, and their number; the head itself
    and None where there is none that every reader reads alike.
    """
    for name in _NAMES:
        at = data.find(name)
        if at >= 0:
            at += _NAME_BYTES
            end = data.find(b"\r\n", at)
            digits = data[at:end]
            if is_length(digits):
                return data[:at] + data[end:], int(digits)
            break
    return data, None
