"""Token counts read from an engine's answer, and the two edits of its frames, by byte search.

A quote inside a JSON string is escaped, so the bytes ``"usage":{`` can only be a key and its object:
no frame is parsed in the steady state. vLLM's compact spelling and order take the short way; other
engines' the longer one, with the same result. ``None`` is not 0. Not here: what counts cost
(``quotas.settlement``), where an event ends (``contract.sse``).
"""

import re
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Annotated

import msgspec

from gateway.contract.sse import data_of

#: vLLM's order, compact: the whole reading of a frame in one match.
COMPACT = re.compile(
    rb'"usage":\{"prompt_tokens":(\d{1,15}),"total_tokens":\d{1,15},"completion_tokens":(\d{1,15})[,}]'
)
#: What stands before vLLM's usage: the end of an array that is not empty, its choices.
AFTER_CHOICES = b"}],"
USAGE_KEY = re.compile(rb'"usage"\s*:\s*(?=\{)')
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'\{(?:[^{}"]++|' + _STRING + rb")*+\}"
#: An object that nests at most one level deeper: details inside usage.
OBJECT = re.compile(rb'\{(?:[^{}"]++|' + _STRING + b"|" + _FLAT + rb")*+\}", re.DOTALL)
_PLAIN = rb'"[a-z_]++":[a-z0-9]++'
#: vLLM's, with names and numbers alone. Atomic: before CPython 3.11.5 a group that is repeated
#: possessively, `(..)*+`, loses its place where its last turn fails halfway (python/cpython#106052).
PLAIN_OBJECT = re.compile(rb"\{" + _PLAIN + rb"(?>(?:," + _PLAIN + rb")*)\}")
COMMA_AFTER = re.compile(rb"\s*,\s*")
COMMA_BEFORE = re.compile(rb",\s*\Z")
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
FIRST_INDEX = re.compile(rb'"choices":\[\{"index":(\d{1,9})[,}]')
FINISH = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]*+)"')
TEXT = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|refusal|name|arguments)"\s*:\s*"[^"]'
)
MODEL = re.compile(rb'"model"\s*:\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")')
#: What a caller who asked for it is told of the price, in ``usage``.
COST_KEYS = ("cost", "currency")
_COST_KEY = re.compile(rb'"(?:cost|currency)"\s*:')
#: HTTP's status of an error event that gives none, by the type it names.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "Bad Request": 400,
    "NotFoundError": 404,
    "rate_limit_error": 429,
    "service_unavailable_error": 503,
}
NO_ERROR = (b"null", b"{}", b'""', b"false")
VOID_FINISHES = (None, b"", b"error", b"abort")
#: A whole answer above this is searched at its end, where engines put usage, before it is decoded.
WHOLE_BYTES_MAX = 65_536
TAIL_BYTES = 4096


class Seen(IntEnum):
    """What a look found; false where the frame carries no counts."""

    NOTHING = 0
    PARTIAL = 1
    FINAL = 2

    @property
    def final(self) -> bool:
        return self is Seen.FINAL


NOTHING, PARTIAL, FINAL = Seen.NOTHING, Seen.PARTIAL, Seen.FINAL


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice] = []


class _Whole(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_WHOLE = msgspec.json.Decoder(_Whole)
_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Counted(msgspec.Struct):
    """A whole answer that tells what any does: everything else is read the longer way."""

    usage: _Counts
    error: None = None


_COUNTED = msgspec.json.Decoder(_Counted)


class UsageFold:
    """Mutable; one per attempt. ``prompts`` and ``n`` are the request's: choice i answers i // n.

    completion = sum over choices of the last count; prompt = sum over prompts of the count on any
    of its choices; the final frame replaces both and alone brings ``cached`` and ``reasoning``.
    ``any_token``: at least one token was made. ``void_finish``: it ended with no token and without
    a finish worth the name.
    """

    __slots__ = (
        "_choices",
        "_finish",
        "_n",
        "_single",
        "any_token",
        "cached",
        "choices_seen",
        "completion",
        "final",
        "prompt",
        "reasoning",
    )

    def __init__(self, prompts: int, n: int) -> None:
        self.prompt: int | None = None
        self.completion: int | None = None
        self.cached: int | None = None
        self.reasoning: int | None = None
        self.final = False
        self.any_token = False
        self.choices_seen = False
        self._n = n
        self._single = prompts * n <= 1
        #: Counts by prompt and by choice, once there are several.
        self._choices: tuple[dict[int, int], dict[int, int]] | None = None
        self._finish: bytes | None = None

    @property
    def steady(self) -> bool:
        """One choice that has made a token: from now on only its counts change."""
        return self._single and self.any_token and not self.final

    @property
    def void_finish(self) -> bool:
        return self.choices_seen and not self.any_token and self._finish in VOID_FINISHES

    def look(self, frame: bytes) -> Seen:
        """Fold one data frame in. Whatever it holds, this does not raise."""
        if not self.any_token:
            self._look_for_text(frame)
        at = frame.rfind(b'"usage":{')
        if at < 0:
            if b'"usage"' not in frame:
                return NOTHING
            return self._look_slowly(frame)
        if frame[at - 3 : at] != AFTER_CHOICES and NO_CHOICES.search(frame) is not None:
            return self._take_final(frame)
        match = COMPACT.match(frame, at)
        if match is None:
            return self._look_slowly(frame)
        prompt, completion = match.groups()
        if self._single:
            if not self.final:
                self.prompt = int(prompt)
                self.completion = made = int(completion)
                if made:
                    self.any_token = True
            return PARTIAL
        index = FIRST_INDEX.search(frame, 0, at)
        if index is None or frame.find(b'},{"index":', index.end(), at) >= 0:
            return self._look_slowly(frame)  # perhaps a second choice
        self._take(int(index[1]), int(prompt), int(completion))
        return PARTIAL

    def take_whole(self, usage: Mapping[str, object]) -> None:
        """Final counts from a decoded usage object; what is no count is left as it was."""
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if prompt is None and completion is None:
            return
        self.final = True
        self.prompt = self.prompt if prompt is None else prompt
        self.completion = self.completion if completion is None else completion
        self.any_token = self.any_token or bool(completion)
        self.cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
        self.reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")

    def take_counts(self, counts: _Counts) -> None:
        """The same of counts that are all there, at least one token made."""
        self.final = self.any_token = True
        self.prompt, self.completion = counts.prompt_tokens, counts.completion_tokens
        of_prompt, of_completion = counts.prompt_tokens_details, counts.completion_tokens_details
        if of_prompt is not None:
            self.cached = of_prompt.cached_tokens
        if of_completion is not None:
            self.reasoning = of_completion.reasoning_tokens

    def note_choices(self, frame: bytes) -> None:
        """Finish reasons and text of a frame or body, for ``void_finish``."""
        self.choices_seen = True
        finish = FINISH.search(frame)
        if finish is not None:
            self._finish = finish[1]
        if TEXT.search(frame) is not None:
            self.any_token = True

    def _look_for_text(self, frame: bytes) -> None:
        """Until a token was made: it may have been made without a count."""
        if b'"choices"' not in frame or NO_CHOICES.search(frame) is not None:
            return
        self.choices_seen = True
        finish = FINISH.search(frame)
        if finish is not None:
            self._finish = finish[1]
        if b'"usage"' not in frame and TEXT.search(frame) is not None:
            self.any_token = True

    def _look_slowly(self, frame: bytes) -> Seen:
        """Any spelling and order of keys."""
        span = _usage_span(frame)
        if span is None:
            return NOTHING
        if NO_CHOICES.search(frame) is not None:
            return self._take_final(frame)
        usage = _decoded(frame[span[0] : span[1]])
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if prompt is None or completion is None:
            return PARTIAL
        index = 0 if self._single else _only_index(frame)
        if index is not None:
            self._take(index, prompt, completion)
        return PARTIAL

    def _take(self, index: int, prompt: int, completion: int) -> None:
        """One choice's running counts. A final frame, once seen, stands."""
        if self.final:
            return
        if self._choices is None:
            self._choices = {}, {}
        by_prompt, by_choice = self._choices
        by_prompt[index // max(1, self._n)] = prompt
        by_choice[index] = completion
        self.prompt = sum(by_prompt.values())
        self.completion = made = sum(by_choice.values())
        if made:
            self.any_token = True

    def _take_final(self, frame: bytes) -> Seen:
        span = _usage_span(frame)
        if span is None:
            return NOTHING
        self.take_whole(_decoded(frame[span[0] : span[1]]))
        return FINAL


def cut(frame: bytes) -> bytes | None:
    """The frame without its ``usage``, other bytes as they were; None: nothing else is in it."""
    at = frame.rfind(b'"usage":{')
    if at >= 0:
        if frame[at - 3 : at] == AFTER_CHOICES:
            plain = PLAIN_OBJECT.match(frame, at + 8)
            if plain is not None:
                return frame[: at - 1] + frame[plain.end() :]
        start, end = at, _object_end(frame, at + 8)
    else:
        key = _last_usage_key(frame)
        if key is None:
            return frame
        start, end = key.start(), _object_end(frame, key.end())
    if end < 0:
        return frame
    if NO_CHOICES.search(frame) is not None:
        return None
    if frame[start - 1 : start] == b",":  # the comma before goes too
        return frame[: start - 1] + frame[end:]
    before = COMMA_BEFORE.search(frame, max(0, start - 64), start)
    if before is not None:
        return frame[: before.start()] + frame[end:]
    after = COMMA_AFTER.match(frame, end)
    return frame[:start] + frame[after.end() if after else end :]


def tell_cost(frame: bytes, cost: bytes) -> bytes:
    """The frame, or whole answer, with ``cost`` (members of a JSON object, never empty) at the end of
    its ``usage``; as it was where it has none.

    An engine that says a cost of its own is another gateway: ours stands in its place.
    """
    span = _usage_span(frame)
    if span is None:
        return frame
    usage = frame[span[0] : span[1]]
    if _COST_KEY.search(usage) is not None:
        told = dict(_decoded(usage))
        for name in COST_KEYS:
            told.pop(name, None)
        usage = msgspec.json.encode(told)
    body = usage[:-1].rstrip()
    comma = b"" if body.endswith(b"{") else b","
    return b"".join((frame[: span[0]], body, comma, cost, b"}", frame[span[1] :]))


def rename(frame: bytes, upstream_model: str, public_model: str) -> bytes:
    """The frame with its top-level ``model`` made public, whatever name the engine gave.

    ``upstream_model``, the usual one, is found by a plain search.
    """
    old, new = model_pair(upstream_model), model_pair(public_model)
    made = frame.replace(old, new, 1)
    if made is not frame:  # CPython gives the object itself where nothing was found
        return made
    found = MODEL.search(frame)
    if found is None:
        return frame
    return b"".join((frame[: found.start(1)], new[8:], frame[found.end(1) :]))


def error_in(frame: bytes) -> bytes | None:
    """The JSON of an error event, always as ``{"error": ...}``; None for every other frame.

    What cannot be read and speaks of an error is one: nobody else could read it either.
    """
    if b'"error"' not in frame:
        return None
    payload = _payload(frame)
    decoded = _decoded(payload)
    if not decoded:
        return b'{"error":{}}'
    if decoded.get("error"):
        return payload
    if decoded.get("object") == "error":  # vLLM before 0.10
        return b'{"error":' + payload + b"}"
    return None


def is_json(frame: bytes) -> bool:
    """Whether the data of an event is JSON, to its last byte."""
    try:
        msgspec.json.decode(_payload(frame), type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def status_in(body: bytes) -> int:
    """The HTTP status that an engine's error, ``{"error": ...}``, speaks of; 500 where it does not."""
    error = _decoded(body).get("error")
    if not isinstance(error, dict):
        return 500
    code, kind = error.get("code"), error.get("type")
    if isinstance(code, str) and re.fullmatch(r"[45]\d\d", code, re.ASCII):
        code = int(code)
    if type(code) is int and 400 <= code <= 599:  # noqa: PLR2004 -- HTTP's classes of errors
        return code
    return STATUS_OF_TYPE.get(kind, 500) if isinstance(kind, str) else 500


def fold_unary(fold: UsageFold, body: bytes) -> bool:
    """Fold a whole answer: its usage is final; one without a usage changes nothing.

    False, and nothing folded: this is no answer, but no JSON object, or an error said with a 200.
    A large one is judged by its ends.
    """
    usage: Mapping[str, object] | None
    if len(body) <= WHOLE_BYTES_MAX:
        try:
            counts = _COUNTED.decode(body).usage
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            counts = None
        if counts is not None and counts.completion_tokens:
            fold.take_counts(counts)
            return True
        usage = _usage_of(body)
    elif body[:16].lstrip()[:1] != b"{" or body[-16:].rstrip()[-1:] != b"}":
        usage = None
    else:
        tail = body[-TAIL_BYTES:]
        span = _usage_span(tail)
        usage = _decoded(tail[span[0] : span[1]]) if span else _usage_of(body)
    if usage is None:
        return False
    if b'"choices"' in body[:WHOLE_BYTES_MAX]:
        fold.note_choices(body)
    fold.take_whole(usage)
    return True


# -- reading ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def model_pair(name: str) -> bytes:
    """``"model":"name"`` as engines and we write it."""
    return b'"model":' + msgspec.json.encode(name)


def _last_usage_key(frame: bytes) -> "re.Match[bytes] | None":
    """The last ``"usage":`` that an object follows."""
    end = len(frame)
    while (at := frame.rfind(b'"usage"', 0, end)) >= 0:
        key = USAGE_KEY.match(frame, at)
        if key is not None:
            return key
        end = at
    return None


def _usage_span(frame: bytes) -> tuple[int, int] | None:
    """Where the usage object's value begins and ends."""
    key = _last_usage_key(frame)
    if key is None:
        return None
    end = _object_end(frame, key.end())
    return None if end < 0 else (key.end(), end)


def _object_end(frame: bytes, at: int) -> int:
    """The end of the object that begins at ``at``; -1 where it is not one."""
    found = OBJECT.match(frame, at)
    return -1 if found is None else found.end()


def _only_index(frame: bytes) -> int | None:
    """The index of a frame's one choice; None where it has several, so that no one owns the count."""
    try:
        choices = msgspec.json.decode(_payload(frame), type=_Choices).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return choices[0].index if len(choices) == 1 else None


def _usage_of(body: bytes) -> Mapping[str, object] | None:
    """The usage of a whole answer, empty where it tells none; None where it is no answer."""
    try:
        whole = _WHOLE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _decoded(bytes(whole.usage)) if bytes(whole.error) in NO_ERROR else None


def _payload(frame: bytes) -> bytes:
    return data_of(frame) or b""


def _decoded(payload: bytes) -> Mapping[str, object]:
    """A JSON object; empty for anything else."""
    try:
        decoded = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _count(usage: Mapping[str, object], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _detail(usage: Mapping[str, object], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _count(details, name) if isinstance(details, dict) else None
