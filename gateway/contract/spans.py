"""Where the members of a JSON object lie in its bytes, and an object rebuilt from its own bytes.

The decode (in C) gives each value's bytes in order; a walk over the members then finds their spans
and every duplicate, without recursion. Edits keep all other bytes as they came: unknown fields,
order, escapes and spacing. Pure.
"""

import re
from collections.abc import Mapping

import msgspec

from gateway.contract.errors import InvalidBody

DEPTH_MAX = 64
SLICE_BYTES = 65_536
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Member(msgspec.Struct, frozen=True):
    """``key`` decoded; offsets into the object's bytes. ``start`` is the key's opening quote."""

    key: str
    start: int
    value_start: int
    end: int


def members(body: bytes, path: str = "") -> list[Member]:
    """The members of the object that ``body`` is, in order.

    Raises ``InvalidBody`` for anything but a valid object, and for a key that comes twice however
    it is spelled: two parsers would not agree on its value.
    """
    try:
        values = _objects.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidBody(
            f"We could not parse the JSON body of your request: {error}", path or None
        ) from None
    found: list[Member] = []
    at = body.index(b"{") + 1
    for key, value in values.items():
        start = _SPACE.match(body, at).end()  # type: ignore[union-attr] -- matches the empty string
        name = _STRING.match(body, start)
        if name is None:
            raise _twice(path, found)
        colon = _SPACE.match(body, name.end()).end()  # type: ignore[union-attr]
        value_start = _SPACE.match(body, colon + 1).end()  # type: ignore[union-attr]
        raw = bytes(value)
        end = value_start + len(raw)
        if body[value_start:end] != raw or msgspec.json.decode(name[0]) != key:
            raise _twice(path, [*found, Member(key, start, value_start, end)])
        found.append(Member(key, start, value_start, end))
        at = _SPACE.match(body, end).end()  # type: ignore[union-attr]
        if body[at : at + 1] == b",":
            at += 1
    if body[at : at + 1] != b"}":
        raise _twice(path, found)
    return found


def _twice(path: str, found: list[Member]) -> InvalidBody:
    near = f" near `{found[-1].key}`" if found else ""
    return InvalidBody(f"A key comes twice in the JSON object{near}.", path or None)


def rebuild(
    body: bytes,
    found: list[Member],
    *,
    remove: frozenset[str] = frozenset(),
    replace: Mapping[str, bytes] | None = None,
    add: Mapping[str, bytes] | None = None,
) -> bytes:
    """The object less ``remove``, with ``replace``'s values, then ``add`` at its end.

    Values are JSON bytes. Keys in ``replace`` that the object lacks are added: there is never a
    second key of a name. What is not named keeps its bytes, separators too.
    """
    replace = dict(replace or {})
    pieces: list[bytes] = []
    separator = b""
    for index, member in enumerate(found):
        if member.key in remove:
            continue
        value = replace.pop(member.key, None)
        if value is None:
            piece = body[member.start : member.end]
        else:
            piece = body[member.start : member.value_start] + value
        pieces.append(separator + piece)
        following = found[index + 1].start if index + 1 < len(found) else None
        separator = body[member.end : following] if following is not None else b","
    added = {**replace, **(add or {})}
    pieces += [
        b"%b%b:%b" % (b"," if pieces or number else b"", msgspec.json.encode(key), value)
        for number, (key, value) in enumerate(added.items())
    ]
    head = body[: found[0].start] if found else body[: body.index(b"{") + 1]
    tail = body[found[-1].end :] if found else b"}"
    return head + b"".join(pieces) + tail


class DepthScan:
    """Finds nesting above ``DEPTH_MAX`` before any recursive parser sees the body.

    Fed in slices so that a large body leaves the loop its turns: quotes split a slice into what is
    inside and outside strings, all in C. Brackets that remain are peeled a level at a time.
    """

    __slots__ = ("_brackets", "_carry", "_inside")

    def __init__(self) -> None:
        self._brackets: list[bytes] = []
        self._carry = b""
        self._inside = False

    def feed(self, piece: bytes) -> None:
        data = self._carry + piece
        odd = (len(data) - len(data.rstrip(b"\\"))) % 2
        data, self._carry = (data[:-1], data[-1:]) if odd else (data, b"")
        parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = parts[1::2] if self._inside else parts[::2]
        self._inside ^= (len(parts) - 1) % 2 == 1
        kept = b"".join(outside).translate(None, _NOT_BRACKETS)
        if kept:
            self._brackets.append(kept)

    def finish(self) -> None:
        """Raises ``InvalidBody`` when the nesting is too deep, or never closes."""
        if _peel(b"".join(self._brackets), DEPTH_MAX):
            raise InvalidBody(f"The JSON body is nested deeper than {DEPTH_MAX} levels, or broken.")


def _peel(brackets: bytes, levels: int) -> bytes:
    """What is left after taking away the innermost pairs ``levels`` times."""
    for _ in range(levels):
        if not brackets:
            break
        fewer = brackets.replace(b"[]", b"\0").replace(b"{}", b"").replace(b"\0", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return brackets
