"""Token counts read from an engine's answer, and the two edits that hide what was not asked for.

One look at each frame, by byte search: inside a JSON string every quote is escaped, so an unescaped
``"usage":`` is the member and never text. How counts fold (measured on vLLM 0.32): a chunk's
completion count is its choice's own, its prompt count its prompt's own, once per prompt; the final
frame (``choices: []``) holds the sums and replaces all. None is not 0. Pure.
"""

import msgspec

NOTHING, PARTIAL, FINAL, NULL = 0, 1, 2, 3
_KEY = b'"usage":'
_NO_CHOICES = (b'"choices":[]', b'"choices": []')
_FINISH = b'"finish_reason":"'
#: Ways to finish that are no finish for the one who waits.
VOID_REASONS = frozenset({"", "error", "abort"})


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_usage = msgspec.json.Decoder(_Usage)
_chunk = msgspec.json.Decoder(_Chunk)


class UsageFold:
    """Mutable; one per attempt. ``prompts`` x ``n`` sequences; index // n is the prompt."""

    __slots__ = (
        "_by_index",
        "_by_prompt",
        "_n",
        "_single",
        "cached",
        "completion",
        "final",
        "finish_reason",
        "prompt",
        "reasoning",
    )

    def __init__(self, prompts: int, n: int) -> None:
        self._n = n
        self._single = prompts * n == 1
        self._by_index: dict[int, int] = {}
        self._by_prompt: dict[int, int] = {}
        self.prompt: int | None = None
        self.completion: int | None = None
        self.cached: int | None = None
        self.reasoning: int | None = None
        self.final = False
        self.finish_reason = ""

    @property
    def void_finish(self) -> bool:
        return self.finish_reason in VOID_REASONS

    def look(self, frame: bytes) -> int:
        """Read one data frame: NOTHING, PARTIAL or FINAL usage, or a NULL one."""
        at = frame.find(_FINISH)
        if at >= 0:
            start = at + len(_FINISH)
            self.finish_reason = frame[start : frame.find(b'"', start)].decode("latin-1")
        at = frame.rfind(_KEY)
        if at < 0:
            return NOTHING
        start, end = _object_span(frame, at)
        if start < 0:
            return NULL if end >= 0 else NOTHING
        try:
            usage = _usage.decode(frame[start:end])
        except msgspec.MsgspecError:
            return NOTHING
        if frame.find(_NO_CHOICES[0]) >= 0 or frame.find(_NO_CHOICES[1]) >= 0:
            self._replace(usage)
            return FINAL
        self._add(0 if self._single else _index_in(frame), usage)
        return PARTIAL

    def whole(self, usage: _Usage, finish_reason: str) -> None:
        """A unary body's own usage."""
        self.finish_reason = finish_reason
        self._replace(usage)

    def _add(self, index: int, usage: _Usage) -> None:
        if self.final:
            return
        if usage.completion_tokens is not None:
            if self._single:
                self.completion = usage.completion_tokens
            else:
                self._by_index[index] = usage.completion_tokens
                self.completion = sum(self._by_index.values())
        if usage.prompt_tokens is not None:
            if self._single:
                self.prompt = usage.prompt_tokens
            else:
                self._by_prompt[index // self._n] = usage.prompt_tokens
                self.prompt = sum(self._by_prompt.values())

    def _replace(self, usage: _Usage) -> None:
        self.final = True
        if usage.prompt_tokens is not None:
            self.prompt = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.completion = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.cached = usage.prompt_tokens_details.cached_tokens
        if usage.completion_tokens_details is not None:
            self.reasoning = usage.completion_tokens_details.reasoning_tokens


def cut(frame: bytes) -> bytes | None:
    """The frame without its ``usage``; None when it was only there for the usage."""
    if frame.find(_NO_CHOICES[0]) >= 0 or frame.find(_NO_CHOICES[1]) >= 0:
        return None
    at = frame.rfind(_KEY)
    if at < 0:
        return frame
    start, end = _object_span(frame, at)
    if end < 0:
        return frame
    if frame[at - 1 : at] == b",":
        return frame[: at - 1] + frame[end:]
    before = frame[:at].rstrip()
    if before[-1:] == b",":
        return before[:-1] + frame[end:]
    after = frame[end:].lstrip()
    return frame[:at] + (after[1:].lstrip() if after[:1] == b"," else after)


def rename(data: bytes, upstream: str, public: str) -> bytes:
    """The first top-level ``model`` made public; other bytes as they came."""
    old = msgspec.json.encode(upstream)
    new = msgspec.json.encode(public)
    renamed = data.replace(b'"model":' + old, b'"model":' + new, 1)
    if renamed is data or renamed == data:
        renamed = data.replace(b'"model": ' + old, b'"model": ' + new, 1)
    return renamed


def rename_unary(body: bytes, upstream: str, public: str) -> bytes:
    """The same for a whole answer."""
    return rename(body, upstream, public)


def is_done(frame: bytes) -> bool:
    """``data: [DONE]``, whatever its spacing and line ends."""
    return len(frame) < 24 and frame[5:].strip() == b"[DONE]"  # noqa: PLR2004 -- cheap first


def error_in(frame: bytes) -> bytes | None:
    """The JSON of an error event (``data: {"error": ...}``), else None."""
    head = frame[5:24].lstrip()
    if head[:8] != b'{"error"' and head[:9] != b'{ "error"':
        return None
    return frame[5:].strip()


def fold_unary(fold: UsageFold, body: bytes) -> None:
    """Take in a whole answer's usage; a body that is no JSON counts nothing."""
    try:
        said = _chunk.decode(body)
    except msgspec.MsgspecError:
        return
    if said.usage is not None:
        reason = next((each.finish_reason for each in said.choices if each.finish_reason), "")
        fold.whole(said.usage, reason or ("" if said.choices else "stop"))


def _object_span(frame: bytes, at: int) -> tuple[int, int]:
    """Span of the value behind the key at ``at``: (start, end) of an object; (-1, end) of null;
    (-1, -1) of anything else.
    """
    start = at + len(_KEY)
    while frame[start : start + 1] == b" ":
        start += 1
    if frame[start : start + 4] == b"null":
        return -1, start + 4
    if frame[start : start + 1] != b"{":
        return -1, -1
    end = frame.find(b"}", start)
    while end >= 0 and frame.count(b"{", start, end) > frame.count(b"}", start, end + 1):
        end = frame.find(b"}", end + 1)
    return (start, end + 1) if end >= 0 else (-1, -1)


def _index_in(frame: bytes) -> int:
    """The choice index of a chunk: by parse, since tool calls have an index of their own."""
    try:
        choices = _chunk.decode(frame[5:].strip()).choices
    except msgspec.MsgspecError:
        return 0
    return choices[0].index if choices else 0
