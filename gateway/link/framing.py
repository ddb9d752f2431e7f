"""Frames of the link: a length, a number, a kind, a body. Bytes in, frames out; no sockets.

``u32 length | u32 number | u8 kind length | kind | body``, big-endian; ``length`` counts what
follows it. Number 0 is a plain message; an ask carries its own number, and its answer comes back
with the same number and the kind ``answer`` or ``failed``.
"""

import struct

import msgspec

#: A full load of 500 documents is < 1 MiB; 16 MiB is a peer gone mad.
BODY_BYTES_MAX = 16 << 20
ANSWER = "answer"
FAILED = "failed"
_PREFIX = struct.Struct(">IIB")
_LENGTH_BYTES = 4


class FrameError(Exception):
    """The peer does not speak this protocol; the connection is of no more use."""


class Frame(msgspec.Struct, frozen=True):
    number: int
    kind: str
    body: bytes


def pack(kind: str, body: bytes, number: int = 0) -> bytes:
    """One frame; raises ``FrameError`` for a body above ``BODY_BYTES_MAX``."""
    if len(body) > BODY_BYTES_MAX:
        raise FrameError(f"a {kind} of {len(body)} bytes; at most {BODY_BYTES_MAX}")
    name = kind.encode()
    length = _PREFIX.size - _LENGTH_BYTES + len(name) + len(body)
    return _PREFIX.pack(length, number, len(name)) + name + body


class Splitter:
    """Fed with what a socket gave, cut anywhere; gives the frames that are whole."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        pending = self._pending
        pending += data
        frames = []
        start = 0
        while len(pending) - start >= _PREFIX.size:
            length, number, kind_length = _PREFIX.unpack_from(pending, start)
            if not _PREFIX.size - _LENGTH_BYTES + kind_length <= length <= BODY_BYTES_MAX + 512:
                raise FrameError(f"a frame of {length} bytes")
            end = start + _LENGTH_BYTES + length
            if len(pending) < end:
                break
            kind_end = start + _PREFIX.size + kind_length
            kind = pending[start + _PREFIX.size : kind_end].decode("ascii", "replace")
            frames.append(Frame(number, kind, bytes(pending[kind_end:end])))
            start = end
        del pending[:start]
        return frames
