"""What an answer said, kept for as long as its tokens may have to be counted by somebody else.

Only where an engine gives no running counts: the strings of each frame are cut out as they stand,
still escaped, so nothing is decoded on the way and a JSON string can be made of them again. It lives
with its request, is bounded, and is neither stored nor logged. Not here: asking (``contract.questions``
makes what is asked, ``gateway.recount`` asks it).
"""

import re

from gateway.contract.usage import FIRST_INDEX, Seen, UsageFold

#: Escaped bytes kept of one answer; a longer one is not counted again.
KEPT_BYTES_MAX = 1 << 20
#: Every string that a model makes: text, thoughts, refusals, names and arguments of calls.
_SAID = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|refusal|name|arguments)"\s*:\s*'
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
)


class Transcript(UsageFold):
    """A fold that also remembers what was said, by choice. One per attempt."""

    __slots__ = ("_body", "_kept", "_kept_bytes")

    def __init__(self, prompts: int, n: int) -> None:
        UsageFold.__init__(self, prompts, n)  # super() costs as much again
        self._kept: dict[int, list[bytes]] | None = None  # by choice, of a stream alone
        self._kept_bytes = 0
        self._body = b""

    def look(self, frame: bytes) -> Seen:
        self._keep(frame)
        return super().look(frame)

    def note_choices(self, frame: bytes) -> None:
        """A whole answer: kept as it is, and read only if nobody counted it."""
        self._body = frame
        super().note_choices(frame)

    def said(self) -> list[bytes] | None:
        """The texts, escaped as in JSON; None where too much was said to be kept."""
        if self._kept_bytes > KEPT_BYTES_MAX or len(self._body) > KEPT_BYTES_MAX:
            return None
        kept = self._kept or {}
        texts = [b"".join(parts) for _, parts in sorted(kept.items())]
        texts += [match[1] for match in _SAID.finditer(self._body)]
        return [text for text in texts if text]

    def _keep(self, frame: bytes) -> None:
        parts = [text for text in _SAID.findall(frame) if text]
        if not parts or self._kept_bytes > KEPT_BYTES_MAX:
            return
        index = 0
        if not self._single:
            found = FIRST_INDEX.search(frame)
            index = int(found[1]) if found is not None else 0
        if self._kept is None:
            self._kept = {}
        self._kept.setdefault(index, []).extend(parts)
        self._kept_bytes += sum(map(len, parts))
        if self._kept_bytes > KEPT_BYTES_MAX:
            self._kept.clear()
