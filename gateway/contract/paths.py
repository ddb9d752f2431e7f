"""The JSON path of a byte of a body, for errors: ``messages[3].content``.

Steps over what lies before it, a bounded number of times; a path that would take more ends at the
container. Reads only what stands before the byte, so that what is broken behind it does not matter.
"""

import re
from collections.abc import Generator

import msgspec

from gateway.contract.skeleton import value_end

STEPS_MAX = 4096
PATH_CHARS_MAX = 256
_SPACE = re.compile(rb"[ \t\r\n]{0,65536}+")
_KEY = re.compile(rb'"((?:[^"\\]{1,256}+|\\.){0,256}+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_SCALAR = re.compile(rb"[^][ \t\r\n,{}\"]{0,4096}+")
_PLAIN = re.compile(r"[A-Za-z_$][\w$-]*\Z")
_OPENINGS = b"[{"


def path_at(body: bytes, place: int) -> Generator[None, None, str | None]:
    """The path of the value around a byte; None for the body itself. Yields now and then."""
    path = ""
    at = _skip(body, 0)
    steps = 0
    while at < len(body) and body[at] in _OPENINGS and at < place:
        found = yield from _child_at(body, at, place, STEPS_MAX - steps)
        if found is None:
            break
        name, at, taken = found
        steps += taken
        path += name
        if len(path) > PATH_CHARS_MAX:
            break
    return path.removeprefix(".")[:PATH_CHARS_MAX] or None


def _child_at(
    body: bytes, container: int, place: int, steps_max: int
) -> Generator[None, None, tuple[str, int, int] | None]:
    """The child around ``place``: how the path goes on, where its value begins, steps taken."""
    in_object = body[container] == 0x7B  # noqa: PLR2004 -- {
    at = container + 1
    for step in range(steps_max):
        if step % 64 == 63:  # noqa: PLR2004 -- a turn of the loop for many small values
            yield
        at = _skip(body, at)
        name = f"[{step}]"
        if in_object:
            key = _KEY.match(body, at)
            if key is None or key.end() > place:
                return None
            name = _named(key[1])
            at = key.end()
        end = yield from _end_of(body, at)
        if end < 0 or place <= end:  # decoders point behind what they could not read
            return (name, at, step + 1) if at <= place else None
        at = _skip(body, end)
        if body[at : at + 1] != b"," or at >= place:
            return None
        at += 1
    return None


def _end_of(body: bytes, at: int) -> Generator[None, None, int]:
    if body[at : at + 1] in (b'"', b"[", b"{"):
        return (yield from value_end(body, at))
    scalar = _SCALAR.match(body, at)
    return -1 if scalar is None or scalar.end() == at else scalar.end()


def _named(written: bytes) -> str:
    try:
        key = msgspec.json.decode(b'"' + written + b'"', type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ".?"
    return f".{key}" if _PLAIN.match(key) else f"[{msgspec.json.encode(key).decode()}]"


def _skip(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    return at if space is None else space.end()
