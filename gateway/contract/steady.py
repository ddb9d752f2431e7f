"""The steady state of a stream in one step: a read that is one HTTP chunk that is one event.

vLLM's events of one choice with running usage, in its compact spelling, make up nearly every read
of nearly every stream. They are recognised as a whole by byte comparisons and one match, counted,
and given back framed for the client. Whatever is not exactly that is not taken, and goes the long
way (``wire.upstream``'s parser, ``contract.sse``, ``contract.usage``) with the same result. Pure.
"""

import re

from gateway.contract.usage import UsageFold, model_pair

BYTES_MAX = 4096
#: The end of such an event and its chunk: choices, then usage with names and numbers alone.
#: Atomic, not possessive, for the reason told at ``usage.PLAIN_OBJECT``.
ENDING = re.compile(
    rb'\}\],"usage":\{"prompt_tokens":(\d{1,15}),"total_tokens":\d{1,15},'
    rb'"completion_tokens":(\d{1,15})(?>(?:,"[a-z_]++":[a-z0-9]++)*)\}\}\n\n\r\n\Z'
)
USAGE = b'"usage":{'
ERROR = b'"error"'
EVENT_BEGINS = b"data: {"
EVENT_ENDS = b"}\n\n\r\n"
ENDS_BYTES = len(EVENT_ENDS)
#: "14a\r\n" for a payload of that many bytes.
SIZE_LINES = [b"%x\r\n" % size for size in range(2 * BYTES_MAX + 1)]


#: The same line's digits as engines write them, to the payload's bytes.
SIZE_OF = {line[:-2]: size for size, line in enumerate(SIZE_LINES[: BYTES_MAX + 1]) if size}


def _beginnings() -> list[tuple[bytes, int]]:
    """How a read of each length begins if it is one chunk of one event, and where its event does;
    a line end where none can be.
    """
    found = [(b"\n", 0)] * (BYTES_MAX + 1)
    for size, line in enumerate(SIZE_LINES[: BYTES_MAX + 1]):
        whole = len(line) + size + 2
        if whole <= BYTES_MAX:
            found[whole] = (line + EVENT_BEGINS, len(line))
    return found


BEGINNINGS = _beginnings()


class Steady:
    """One per stream. ``take`` and ``take_each`` give what goes to the client, and put the counts it
    carried into ``fold``.

    ``cuts_usage``: the client did not ask for it. ``names``: (upstream, public) model where they
    differ. The bytes up to the model's name and the length of the ending hardly change within a
    stream: what was seen last is looked for first.
    """

    __slots__ = (
        "_before",
        "_before_bytes",
        "_cuts_usage",
        "_ending_bytes",
        "_fold",
        "_new",
        "_old",
        "_renamed",
        "_renamed_bytes",
    )

    def __init__(self, fold: UsageFold, *, cuts_usage: bool, names: tuple[str, str] | None) -> None:
        self._fold = fold
        self._cuts_usage = cuts_usage
        self._old = self._new = b""
        if names is not None:
            self._old, self._new = model_pair(names[0]), model_pair(names[1])
        self._before = b"\n"  # from the event's first byte to the end of its model; none begins so
        self._renamed = b""  # the same with the public name, which may be the longer one
        self._before_bytes = self._renamed_bytes = 0
        self._ending_bytes = 0

    def take_each(self, data: bytes) -> tuple[list[bytes], int]:
        """The chunks at the beginning of a read that can be taken, and the bytes they were."""
        taken: list[bytes] = []
        at = 0
        while True:
            line_end = data.find(b"\r\n", at, at + 6)
            size = SIZE_OF.get(data[at:line_end]) if line_end > 0 else None
            if size is None:
                break
            end = line_end + size + 4
            out = self.take(data[at:end])
            if out is None:
                break
            taken.append(out)
            at = end
        return taken, at

    def take(self, data: bytes) -> bytes | None:
        """A read that is one chunk; None: not taken."""
        length = len(data)
        if length > BYTES_MAX:
            return None
        beginning, begin = BEGINNINGS[length]
        if not data.startswith(beginning):
            return None
        found = ENDING.match(data, length - self._ending_bytes) or self._ending_of(data)
        if (
            found is None
            or data.find(b"\n", begin) != length - 4
            or data.find(b"\r", begin) != length - 2
            or data.find(ERROR) >= 0
        ):
            return None
        end = length - (self._ending_bytes - 2 if self._cuts_usage else ENDS_BYTES)
        out = data
        if self._old:
            if not data.startswith(self._before, begin) and not self._learn(data, begin):
                return None
            rest = begin + self._before_bytes
            size = SIZE_LINES[self._renamed_bytes + end - rest + 3]
            out = b"".join((size, self._renamed, data[rest:end], EVENT_ENDS))
        elif self._cuts_usage:
            out = b"".join((SIZE_LINES[end - begin + 3], data[begin:end], EVENT_ENDS))
        fold = self._fold
        fold.prompt, fold.completion = int(found[1]), int(found[2])
        return out

    def _ending_of(self, data: bytes) -> re.Match[bytes] | None:
        """The same match where the ending is not as long as the one before."""
        usage = data.rfind(USAGE)
        found = ENDING.match(data, usage - 3) if usage > 0 else None
        if found is not None:
            self._ending_bytes = len(data) - usage + 3
        return found

    def _learn(self, data: bytes, begin: int) -> bool:
        """How this event begins, up to its model; false: it has no model of the engine's name."""
        at = data.find(self._old, begin)
        if at < 0:
            return False
        after = at + len(self._old)
        self._before, self._renamed = data[begin:after], data[begin:at] + self._new
        self._before_bytes, self._renamed_bytes = after - begin, len(self._renamed)
        return True
