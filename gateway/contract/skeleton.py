"""JSON with its strings taken out, slice by slice: nesting and shape at the speed of C.

A body is cut where no escape is torn, freed of escapes, split at its quotes; every other part lies
outside strings. No step touches a byte from Python, none recurses, and every generator yields once
a slice so that a large body never holds the loop. It judges no syntax: a body that is no JSON gives
numbers without meaning, and the decoder refuses it afterwards.
"""

import re
from collections.abc import Generator
from itertools import accumulate

import msgspec

from gateway.contract.errors import InvalidBody

SLICE_BYTES = 65_536
FIRST_BYTES = 512
FINE_BYTES = 1024
DEPTH_MAX = 64
#: Openings become +1, closings -1 (255 as a signed byte); everything else goes.
STEPS = bytes(1 if byte in b"[{" else 255 for byte in range(256))
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
NO_MARKS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
#: Both kinds of brackets as one.
SQUARE = bytes.maketrans(b"{}", b"[]")
QUOTE = 0x22
BACKSLASH = 0x5C


class Shape(msgspec.Struct):
    """A list without its strings: ``brackets`` in order, how many commas, whether strings and
    numbers are in it, and how many bytes of anything else (``true``, ``1.5``, objects' colons).
    """

    brackets: bytes = b""
    commas: int = 0
    strings: bool = False
    numbers: bool = False
    others: int = 0


def cut_at(body: bytes, start: int, size: int) -> int:
    """The end of a slice of at most ``size`` bytes from ``start`` that tears no escape."""
    end = min(start + size, len(body))
    if end == len(body) or body[end - 1] != BACKSLASH:
        return end
    piece = body[start:end]
    run = len(piece) - len(piece.rstrip(b"\\"))
    return end - 1 if run % 2 and end - 1 > start else end


def outside(piece: bytes, in_string: bool) -> tuple[bytes, bool]:  # noqa: FBT001 -- a state, carried on
    """The bytes of a slice that lie outside strings, and whether it ends inside one."""
    parts = _unescaped(piece).split(b'"')
    return b"".join(parts[in_string::2]), in_string ^ (len(parts) % 2 == 0)


def brackets(piece: bytes, in_string: bool) -> tuple[bytes, bool]:  # noqa: FBT001 -- as above
    """The brackets of a slice that lie outside strings, and whether it ends inside one.

    Two quotes with nothing between them that matters go first: that keeps every other byte on its
    side of the strings, and leaves few quotes to split at.
    """
    piece = _unescaped(piece).translate(None, NO_MARKS).replace(b'""', b"")
    if b'"' not in piece and not in_string:
        return piece, False
    parts = piece.split(b'"')
    return b"".join(parts[in_string::2]), in_string ^ (len(parts) % 2 == 0)


def check_depth(body: bytes) -> Generator[None, None, None]:
    """Raises ``InvalidBody`` where brackets nest deeper than ``DEPTH_MAX``."""
    at, depth, in_string = 0, 0, False
    while at < len(body):
        end = cut_at(body, at, SLICE_BYTES)
        bare, in_string = brackets(body[at:end], in_string)
        opened = bare.count(b"[") + bare.count(b"{")
        if depth + opened > DEPTH_MAX and _goes_above(bare, depth):
            raise InvalidBody(f"The body is nested deeper than {DEPTH_MAX} levels.")
        depth += 2 * opened - len(bare)
        at = end
        yield


def value_end(body: bytes, at: int) -> Generator[None, None, int]:
    """Where the string, array or object that begins at ``at`` ends; -1 where it does not."""
    if body[at] == QUOTE:
        return (yield from _string_end(body, at + 1))
    at, depth, in_string, size = at + 1, 1, False, FIRST_BYTES
    while at < len(body):
        end = cut_at(body, at, size)
        size = min(size * 8, SLICE_BYTES)  # most values are short
        bare, after = brackets(body[at:end], in_string)
        closed = bare.count(b"]") + bare.count(b"}")
        if depth <= closed and _lowest(bare, depth) <= 0:
            return _close_in(body, at, end, depth, in_string)
        depth += len(bare) - 2 * closed
        at, in_string = end, after
        yield
    return -1


def shape_of(array: bytes, brackets_max: int) -> Generator[None, None, Shape]:
    """The shape of an array. Reading stops once it has more than ``brackets_max`` brackets."""
    shape = Shape(strings=b'"' in array)
    at, in_string = 0, False
    while at < len(array) and len(shape.brackets) <= brackets_max:
        end = cut_at(array, at, SLICE_BYTES)
        bare, in_string = outside(array[at:end], in_string)
        bare = bare.translate(None, b" \t\r\n")
        commas = bare.count(b",")
        rest = bare.translate(None, b",-0123456789")
        marks = rest.translate(None, NO_BRACKETS)
        shape.brackets += marks
        shape.commas += commas
        shape.numbers = shape.numbers or len(bare) > commas + len(rest)
        shape.others += len(rest) - len(marks)
        at = end
        yield
    return shape


def _unescaped(piece: bytes) -> bytes:
    """Without the escapes that hide a quote."""
    if b"\\" not in piece:
        return piece
    if b"\\\\" in piece:
        piece = piece.replace(b"\\\\", b"")
    return piece.replace(b'\\"', b"")


def open_after(marks: bytes) -> tuple[int, bytes]:
    """How many brackets these close that were open before, and which they leave open, in order."""
    rest, _, settled = innermost_removed(marks)
    if settled:
        opened = rest.lstrip(b"]}")
        return len(rest) - len(opened), opened
    # Deep ones would take many passes. The last time that the depth was one less than a level, the
    # bracket opened which is open at that level.
    steps = memoryview(rest.translate(STEPS)).cast("b")
    try:
        depths = bytes(accumulate(steps, initial=128))
    except ValueError:
        return len(rest), b""  # more closings than anything could have opened
    lowest, last = min(depths), depths[-1]
    opened = b""
    for level in range(lowest, last):
        at = depths.rfind(level)
        opened += rest[at : at + 1]
    return 128 - lowest, opened


def innermost_removed(marks: bytes) -> tuple[bytes, int, bool]:
    """Brackets without pairs that hold nothing, taken out again and again; how often; and whether no
    pair is left. It stops where little goes in a pass: there a step for each bracket is cheaper.
    """
    passes = 0
    while True:
        left = marks.replace(b"[]", b"").replace(b"{}", b"")
        gone = len(marks) - len(left)
        if not gone:
            return marks, passes, True
        marks = left
        passes += 1
        if 4 * gone < len(left):
            return marks, passes, False


def _goes_above(bare: bytes, depth: int) -> bool:
    """Whether nesting goes deeper than ``DEPTH_MAX``: by a bound that is quick where little nests,
    else step by step.
    """
    rest, passes, _ = innermost_removed(bare.translate(SQUARE))
    if depth + rest.count(b"[") + passes <= DEPTH_MAX:
        return False
    steps = memoryview(bare.translate(STEPS)).cast("b")
    return depth + max(accumulate(steps), default=0) > DEPTH_MAX


def _lowest(bare: bytes, depth: int) -> int:
    """The least depth on the way, from ``depth`` on."""
    rest, _, settled = innermost_removed(bare.translate(SQUARE))
    if settled:  # nothing is left but closings, then openings
        return depth - rest.count(b"]")
    return depth + min(accumulate(memoryview(rest.translate(STEPS)).cast("b")), default=0)


def _string_end(body: bytes, at: int) -> Generator[None, None, int]:
    while at < len(body):
        end = cut_at(body, at, SLICE_BYTES)
        found = STRING_REST.match(body, at, end)
        assert found is not None  # it may match nothing
        if found.end() < end:
            return found.end() + 1 if body[found.end()] == QUOTE else -1
        at = end
        yield
    return -1


def _close_in(body: bytes, at: int, end: int, depth: int, in_string: bool) -> int:  # noqa: FBT001
    """The close is known to lie in this slice: find the fine slice, then the bracket."""
    while at < end:
        fine = min(cut_at(body, at, FINE_BYTES), end)
        bare, after = brackets(body[at:fine], in_string)
        if _lowest(bare, depth) <= 0:
            return _bracket_in(body, at, fine, depth, in_string)
        depth += len(bare) - 2 * (bare.count(b"]") + bare.count(b"}"))
        at, in_string = fine, after
    return -1


def _bracket_in(body: bytes, at: int, end: int, depth: int, in_string: bool) -> int:  # noqa: FBT001
    if in_string:
        found = STRING_REST.match(body, at, end)
        assert found is not None
        at = found.end() + 1
    for token in TOKEN.finditer(body, at, end):
        first = body[token.start()]
        if first == QUOTE:
            continue
        depth += 1 if first in b"[{" else -1
        if depth == 0:
            return token.end()
    return -1
