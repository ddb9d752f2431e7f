"""Where the members of a JSON object lie in its bytes: key decoded, and the span of key and value.

A typed decode hands out the values whose names are known as they stand in the body; a walk over the
object then steps from member to member, over such a value by comparing bytes, over any other by its
skeleton. A large body is judged piece by piece instead (``contract.pieces``), and walked by its
skeleton alone. No recursion, no parse of what is not read. Not here: what the members mean
(``contract.envelope``), changing them (``contract.edits``).
"""

import codecs
import re
from collections.abc import Collection, Generator, Iterator, Mapping
from typing import TypedDict, TypeVar

import msgspec

from gateway.contract import media
from gateway.contract.errors import InvalidBody
from gateway.contract.paths import path_at
from gateway.contract.pieces import Broken, broken, check_syntax
from gateway.contract.skeleton import (
    DEPTH_MAX,
    SLICE_BYTES,
    Shape,
    check_depth,
    shape_of,
    value_end,
)

MEMBERS_MAX = 1024
MEMBERS_PER_TURN = 64
SHORT_BYTES = 4096
#: Of a value that is read, where it is neither text nor a list of prompts.
VALUE_BYTES_MAX = 8192
#: OpenAI's limit on the inputs of one embeddings request; a list of prompts has the same here.
LIST_MAX = 2048
#: Fields that are ours to read or to take out: a second one of the same name is refused.
READ = frozenset(
    (
        "model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of",
        "max_tokens", "max_completion_tokens", "user", "safety_identifier", "min_tokens",
        "ignore_eos", "echo", "prompt_logprobs", "service_tier",
    )
)  # fmt: skip
PRIVILEGED = frozenset(
    (
        "priority", "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs",
        "request_id", "session_id", "prompt_embeds", "mm_processor_kwargs", "chat_template",
        "stream_interval",
    )
)  # fmt: skip
GUARDED = READ | PRIVILEGED
#: Read where they stand; the others of ``READ`` are handed out as values.
IN_PLACE = frozenset(("messages", "prompt", "input", "stream_options"))
#: Passed on unread; known only so that the walk steps over them in one comparison.
STEPPED_OVER = (
    "tools", "tool_choice", "functions", "response_format", "structured_outputs", "stop",
    "logit_bias", "metadata", "chat_template_kwargs", "documents", "stop_token_ids",
)  # fmt: skip

_Known = TypedDict(  # type: ignore[misc]  # the names above are the fields
    "_Known",
    dict.fromkeys((*GUARDED, *STEPPED_OVER), msgspec.Raw),
    total=False,
)
T = TypeVar("T")
Fields = msgspec.json.Decoder[dict[str, msgspec.Raw]]
_KNOWN: Fields = msgspec.json.Decoder(_Known)  # a dict at run time
_ANY: Fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

#: Bounded, so that one match never holds the loop.
_SPACE = rb"[ \t\r\n]{0,65536}+"
_KEY = rb'"((?:[^"\\]{1,1024}+|\\.){0,1024}+)"' + _SPACE + b":" + _SPACE
OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
FIRST = re.compile(_KEY, re.DOTALL)
NEXT = re.compile(_SPACE + b"," + _SPACE + _KEY, re.DOTALL)
CLOSE = re.compile(_SPACE + rb"\}")
SCALAR = re.compile(rb"[^][ \t\r\n,{}\"]++")
CONTAINERS = b'"[{'


class Member(msgspec.Struct, frozen=True, gc=False):
    """``start``: the key's quote; ``value``..``end``: the value's bytes."""

    key: str
    start: int
    value: int
    end: int


class Scan:
    """A body's top-level members, found in slices: iterate to yield to the loop between them.

    Raises ``InvalidBody`` for what is no JSON object, nests too deep, holds bad UTF-8 or NaN, or
    names a guarded field twice. When the iteration has ended: ``members`` in order, ``index`` from
    key to its position, ``fields`` the known values as they stand, ``shapes`` of lists of prompts,
    ``text_bytes`` what is no picture or recording.
    """

    __slots__ = ("_done", "body", "fields", "index", "members", "shapes", "text_bytes")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.fields: Mapping[str, msgspec.Raw | bytes] = {}
        self.members: list[Member] = []
        self.index: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        self.text_bytes = len(body)
        self._done = False

    def __iter__(self) -> Iterator[None]:
        if self._done:
            return
        body = self.body
        if len(body) <= SLICE_BYTES:
            if not body.isascii():
                _check_utf8_whole(body)
            # Counting is the cheaper proof for a short body only.
            if len(body) > SHORT_BYTES or body.count(b"[") + body.count(b"{") > DEPTH_MAX:
                yield from check_depth(body)
            known = decode_object(body, _KNOWN)
            self.fields = known
            yield from walk(body, known, GUARDED, "", self.members, self.index)
        else:
            yield from self._judge_large()
        if media.MARK in body:
            self.text_bytes = yield from media.text_bytes(body)
        for key in ("prompt", "input"):
            at = self.index.get(key)
            if at is not None and body[self.members[at].value] == 0x5B:  # noqa: PLR2004 -- "["
                member = self.members[at]
                array = body[member.value : member.end]
                self.shapes[key] = yield from shape_of(array, 2 * LIST_MAX + 4)
        self._done = True

    def _judge_large(self) -> Generator[None, None, None]:
        body = self.body
        yield from _check_utf8(body)
        yield from check_depth(body)
        try:
            yield from check_syntax(body)
        except Broken as error:
            path = yield from path_at(body, error.at)
            raise InvalidBody(_malformed(error), path) from None
        yield from walk(body, {}, GUARDED, "", self.members, self.index)
        fields = {}
        for key in self.index.keys() & (READ - IN_PLACE):
            member = self.members[self.index[key]]
            if member.end - member.value > VALUE_BYTES_MAX:
                raise InvalidBody(f"'{key}' is too long.", key)
            fields[key] = body[member.value : member.end]
        self.fields = fields

    def finish(self) -> None:
        """Everything that is left, at once."""
        if not self._done:
            for _ in self:
                pass

    def value(self, key: str) -> bytes | None:
        """A member's value as it stands; None where there is no such member."""
        at = self.index.get(key)
        if at is None:
            return None
        member = self.members[at]
        return self.body[member.value : member.end]


def members_of(
    body: bytes, guarded: Collection[str], path: str
) -> tuple[list[Member], dict[str, int]]:
    """The members of a small object; ``path`` names it in errors ("stream_options.")."""
    members: list[Member] = []
    index: dict[str, int] = {}
    for _ in walk(body, decode_object(body, _ANY), guarded, path, members, index):
        pass
    return members, index


def walk(
    body: bytes,
    fields: Mapping[str, msgspec.Raw],
    guarded: Collection[str],
    path: str,
    members: list[Member],
    index: dict[str, int],
) -> Generator[None, None, None]:
    """Fill ``members`` and ``index`` from an object that is known to be JSON.

    ``fields`` are values to step over; of a key written twice they hold one, so each is compared.
    """
    opened = OPEN.match(body)
    if opened is None:
        raise InvalidBody("The body must be a JSON object.", path or None)
    at = opened.end()
    found = FIRST.match(body, at)
    count = 0
    while found is not None:
        written, start, value = found[1], found.start(1) - 1, found.end()
        key = written.decode() if b"\\" not in written else _unescaped(written)
        if key in index:
            if key in guarded:
                raise InvalidBody(f"Duplicate key '{path}{key}'.", path + key)
        else:
            index[key] = count
        raw = fields.get(key)
        if raw is not None and body.startswith(raw, value):
            at = value + len(raw)
            found = NEXT.match(body, at)
            if found is None and CLOSE.match(body, at) is None:
                raw = None  # the start of a longer number: the key is there twice
        else:
            raw = None
        if raw is None:
            if body[value] in CONTAINERS:
                at = yield from value_end(body, value)
            else:
                at = yield from _scalar_end(body, value)
            found = NEXT.match(body, at)
        members.append(Member(key, start, value, at))
        count += 1
        if not count % MEMBERS_PER_TURN:
            yield
        if count > MEMBERS_MAX:
            raise InvalidBody(f"The body has more than {MEMBERS_MAX} fields.")
    if CLOSE.match(body, at) is None:
        raise InvalidBody("The body has a key that is too long, or too much space in one place.")


def decode_object(body: bytes, decoder: Fields) -> dict[str, msgspec.Raw]:
    """The values of an object as they stand; ``InvalidBody`` where it is none."""
    if not body:
        raise InvalidBody("The body is empty.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise InvalidBody("The body must be a JSON object.") from None
    except msgspec.DecodeError as error:
        found = broken(error, [(0, 0)])
        raise InvalidBody(_malformed(found), drained(path_at(body, found.at))) from None
    except UnicodeDecodeError:
        raise InvalidBody("The body is not valid UTF-8.") from None
    except RecursionError:
        raise InvalidBody(f"The body is nested deeper than {DEPTH_MAX} levels.") from None


def _scalar_end(body: bytes, at: int) -> Generator[None, None, int]:
    """A number, however long; its syntax is known to be right."""
    while True:
        scalar = SCALAR.match(body, at, at + SLICE_BYTES)
        if scalar is None:
            return at
        if scalar.end() < at + SLICE_BYTES:
            return scalar.end()
        at = scalar.end()
        yield


def _malformed(error: Broken) -> str:
    return f"The body is not valid JSON: {error.detail} (byte {error.at})."


def drained(steps: Generator[None, None, T]) -> T:
    """A generator's result, at once."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def _unescaped(written: bytes) -> str:
    return msgspec.json.decode(b'"' + written + b'"', type=str)


def _check_utf8_whole(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(error.start, drained(path_at(body, error.start))) from None


def _check_utf8(body: bytes) -> Generator[None, None, None]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(body), SLICE_BYTES):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(body[at : at + SLICE_BYTES], final=at + SLICE_BYTES >= len(body))
        except UnicodeDecodeError as error:
            place = at - held + error.start
            raise _not_utf8(place, (yield from path_at(body, place))) from None
        yield


def _not_utf8(place: int, path: str | None) -> InvalidBody:
    return InvalidBody(f"The body is not valid UTF-8 (byte {place}).", path)
