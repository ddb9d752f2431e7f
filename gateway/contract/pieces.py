"""JSON's syntax judged piece by piece: a decode of a whole large body would hold the loop.

A body is cut at commas outside strings; each piece is closed with the brackets that are open around
it, so that it is a JSON text of its own, and given to the decoder. A string longer than a slice is
judged slice by slice and stands as an empty one in its piece. The same verdict as one decode of the
whole: a cut removes one comma, and both its sides are looked at. Not here: what the values are
(``contract.spans``), nesting (``contract.skeleton``), which must be known to be bounded before.
"""

import re
from collections.abc import Generator

import msgspec

from gateway.contract.skeleton import (
    DEPTH_MAX,
    NO_BRACKETS,
    QUOTE,
    SLICE_BYTES,
    cut_at,
    open_after,
)

_SPACE = b" \t\r\n"
#: Between two commas every opened object has a key, and one value may be a string.
_PARTS_MAX = 2 * (DEPTH_MAX + 4)
_MARKS_MAX = 2 * DEPTH_MAX + 2
#: Slices in a row with neither comma nor quote: white space, or a number longer than any engine reads.
_BARE_SLICES_MAX = 8
_OPENED = {0x5B: b"[", 0x7B: b'{"":'}  # an object's last key is in the piece itself
_CLOSINGS = bytes.maketrans(b"[{", b"]}")
_RAW = msgspec.json.Decoder(msgspec.Raw)
_PLACE = re.compile(r" \(byte (\d+)\)")
#: Whole characters and escapes; a pair of surrogates is one.
_UNITS = re.compile(
    rb'(?:[^"\\]++|\\u(?:(?![dD][89abAB])[0-9A-Fa-f]{4}'
    rb"|[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2})|\\[^u])*+",
    re.DOTALL,
)
_UNIT_BYTES_MAX = 12


class Broken(Exception):
    """The syntax breaks ``at`` so many bytes from the body's start; ``detail`` holds no value."""

    def __init__(self, at: int, detail: str) -> None:
        super().__init__(detail)
        self.at = at
        self.detail = detail


def broken(error: Exception, starts: list[tuple[int, int]]) -> Broken:
    """A decoder's error. ``starts``: (byte of the decoded text, byte of the body), ascending."""
    text = str(error).removeprefix("JSON is malformed: ")
    place = _PLACE.search(text)
    at = int(place[1]) if place else starts[-1][0]
    decoded, begins = next((each for each in reversed(starts) if each[0] <= at), starts[0])
    return Broken(begins + max(0, at - decoded), _PLACE.sub("", text))


def check_syntax(body: bytes) -> Generator[None, None, None]:
    """Raises ``Broken`` for what is no JSON text. Nesting is known to be at most ``DEPTH_MAX``."""
    piece = _Piece()
    at = bare_slices = 0
    while at < len(body):
        end = cut_at(body, at, SLICE_BYTES)
        window = body[at:end]
        parts = _masked(window).split(b'"')
        index, found, comma = _last_comma(parts, len(window), at)
        if index >= 0:
            piece.add(window[:comma], at, b"".join((*parts[:index:2], parts[index][:found])))
            piece.close(last=False)
            at += comma + 1
            bare_slices = 0
        else:
            bare = b"".join(parts[::2])
            if len(bare.translate(None, NO_BRACKETS)) > _MARKS_MAX:
                raise Broken(at, "expected a comma between values")
            if len(parts) % 2:
                bare_slices = bare_slices + 1 if len(parts) == 1 else 0
                if window.isspace():
                    window = b" "
                elif bare_slices > _BARE_SLICES_MAX:
                    raise Broken(at, "a number is too long")
                piece.add(window, at, bare)
                at = end
            else:  # a string begins that does not end here
                quote = len(window) - len(parts[-1]) - 1
                piece.add(window[:quote] + b'""', at, bare)
                at = yield from _check_string(body, at + quote + 1)
        yield
    piece.close(last=True)


class _Piece:
    """What was read since the last cut, and what is open around it."""

    __slots__ = ("_first", "_marks", "_stack", "_starts", "_texts")

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._starts: list[int] = []
        self._marks = b""
        self._stack = b""
        self._first = True

    def add(self, text: bytes, start: int, bare: bytes) -> None:
        """``bare``: what of it lies outside strings."""
        self._texts.append(text)
        self._starts.append(start)
        self._marks += bare.translate(None, NO_BRACKETS)

    def close(self, *, last: bool) -> None:
        """Judge it, and begin the next."""
        text = self._texts[0] if len(self._texts) == 1 else b"".join(self._texts)
        begins = self._starts[0] if self._starts else 0
        if not self._first and text.lstrip(_SPACE)[:1] in (b"", b"]", b"}"):
            raise Broken(begins, "expected a value after a comma")
        closed, left_open = open_after(self._marks)
        stack = self._stack[: max(0, len(self._stack) - closed)] + left_open
        if not last and (not stack or text.rstrip(_SPACE)[-1:] in (b"", b"[", b"{")):
            raise Broken(begins + len(text), "unexpected comma")
        opened = b"".join(_OPENED[each] for each in self._stack)
        opened = opened.removesuffix(b'"":')
        closings = b"" if last else stack.translate(_CLOSINGS)[::-1]
        try:
            _RAW.decode(b"".join((opened, text, closings)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            places, decoded = [], len(opened)
            for each, start in zip(self._texts, self._starts, strict=True):
                places.append((decoded, start))
                decoded += len(each)
            raise broken(error, places or [(0, 0)]) from None
        self._texts, self._starts, self._marks, self._stack = [], [], b"", stack
        self._first = False


def _masked(window: bytes) -> bytes:
    """The same length without the escapes that hide a quote."""
    if b"\\" not in window:
        return window
    return window.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def _last_comma(parts: list[bytes], size: int, at: int) -> tuple[int, int, int]:
    """The last comma outside strings: its part, its place there, its place in all; (-1, ...) if none."""
    offset = size
    for index in range(len(parts) - 1, -1, -1):
        offset -= len(parts[index])
        if index % 2 == 0:
            found = parts[index].rfind(b",")
            if found >= 0:
                return index, found, offset + found
        offset -= 1
        if len(parts) - index > _PARTS_MAX:
            raise Broken(at, "expected a comma between strings")
    return -1, -1, -1


def _check_string(body: bytes, at: int) -> Generator[None, None, int]:
    """Judge a string from its first byte on; the place after its closing quote."""
    while at < len(body):
        end = min(at + SLICE_BYTES, len(body))
        while end < len(body) and body[end] & 0xC0 == 0x80 and end > at + 1:  # noqa: PLR2004
            end -= 1  # inside a character
        units = _UNITS.match(body, at, end)
        assert units is not None  # it may match nothing
        stop = units.end()
        try:
            _RAW.decode(b'"' + body[at:stop] + b'"')
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise broken(error, [(1, at)]) from None
        if stop < end and body[stop] == QUOTE:
            return stop + 1
        if stop < end and (end - stop >= _UNIT_BYTES_MAX or end == len(body) or stop == at):
            raise Broken(stop, "invalid escape in a string")
        at = stop
        yield
    raise Broken(len(body), "a string is not closed")
