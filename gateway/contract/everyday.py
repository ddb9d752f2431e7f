"""The everyday body, read in a few steps of C: most requests say a model, messages and a cap.

``read`` knows such a body for certain or says None, and then ``envelope.parse`` reads it the long way,
which is also the one that words every error. What makes it certain: the text (messages or prompt) is
one value and lies where its key was found; in all around it no key is written with an escape, and of
the guarded keys each stands exactly once, so that the one found is the one at the top level. An
application says the same around its texts again and again: that is read once, and kept where no words
are in it but the model's name. Tests hold both ways against each other.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec

from gateway.contract import media
from gateway.contract.envelope import CAP_MAX, DEFAULT_CAPS, MODEL_CHARS_MAX, Envelope, Operation
from gateway.contract.skeleton import DEPTH_MAX
from gateway.contract.spans import GUARDED, MEMBERS_MAX

#: A longer one is scanned (``spans``).
BODY_BYTES_MAX = 65_536
#: A body as short has no more members than are allowed: none is shorter than ``"":1,``.
_FEW_MEMBERS_BYTES = 5 * MEMBERS_MAX
_Cap = Annotated[int, msgspec.Meta(ge=0, le=CAP_MAX)]


class _Messages(TypedDict, total=False):
    messages: msgspec.Raw


class _Prompt(TypedDict, total=False):
    prompt: msgspec.Raw


class _Beside(TypedDict, total=False):
    model: str
    stream: bool
    max_tokens: _Cap


class _Chat(_Messages, _Beside, total=False):
    max_completion_tokens: _Cap


class _Completion(_Prompt, _Beside):
    pass


class _Way(NamedTuple):
    """``key``: of its text, ``find`` decodes that alone, ``begins`` where it is, ``empty`` the shortest.
    ``decode`` reads all that an everyday body of the operation may have of what is guarded; with any
    other field of it, it goes the long way.
    """

    key: str
    find: Callable[[bytes], dict[str, msgspec.Raw]]
    begins: re.Pattern[bytes]
    empty: bytes
    decode: Callable[[bytes], dict[str, Any]]


_WAYS: dict[Operation, _Way] = {
    "chat": _Way(
        "messages",
        msgspec.json.Decoder(_Messages).decode,  # type: ignore[arg-type]  # a dict at run time
        re.compile(rb'"messages"[ \t\r\n]*+:[ \t\r\n]*+(?=\[)'),
        b"[]",
        msgspec.json.Decoder(_Chat).decode,  # type: ignore[arg-type]  # as above
    ),
    "completions": _Way(
        "prompt",
        msgspec.json.Decoder(_Prompt).decode,  # type: ignore[arg-type]  # as above
        re.compile(rb'"prompt"[ \t\r\n]*+:[ \t\r\n]*+(?=")'),
        b'""',
        msgspec.json.Decoder(_Completion).decode,  # type: ignore[arg-type]  # as above
    ),
}
_KEYS = re.compile(rb'"(?:%b)"[ \t\r\n]*+:' % b"|".join(sorted(key.encode() for key in GUARDED)))
#: So many bytes are surely no more characters.
_MODEL = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]{1,%d}+")' % MODEL_CHARS_MAX)


#: What is said around so many texts is kept, where it is no longer than so many bytes.
_KEPT_MAX, _KEPT_BYTES_MAX = 1024, 1024
#: A string that is a member's value.
_WORDS = re.compile(rb':[ \t\r\n]*+"')


class _Said(NamedTuple):
    """What is said around a text. ``first``: where the first member begins; ``start`` and ``end``: of
    the model's value, as if there were no text.
    """

    model: str
    stream: bool
    cap: int | None
    first: int
    start: int
    end: int


def read(body: bytes, operation: Operation) -> Envelope | None:
    """The envelope of an everyday body of chat or completions; None where it may be another."""
    # ``find`` and ``replace`` go by memchr; of bytes, ``in`` is several times as long, ``count`` ten.
    if len(body) > BODY_BYTES_MAX or body.find(media.MARK) >= 0:
        return None
    if len(body) - len(body.replace(b"[", b"").replace(b"{", b"")) > DEPTH_MAX:
        return None
    try:
        way = _WAYS[operation]
        if not body.isascii():
            body.decode()
        text = way.find(body)[way.key]
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = way.begins.search(body)
    if found is None:
        return None
    at = found.end()
    if not body.startswith(text, at):
        return None
    around = body[:at] + body[at + len(text) :]
    key = (operation, around, at)
    said = _kept.get(key)
    if said is None:
        said = _around(operation, around, at)
        if said is None:
            return None
        if len(around) <= _KEPT_BYTES_MAX and _is_wordless(around):
            if len(_kept) >= _KEPT_MAX:
                _kept.clear()
            _kept[key] = said
    model, stream, cap, first, start, end = said
    if start > at:
        start, end = start + len(text), end + len(text)
    return Envelope(
        operation, model, stream, cap, DEFAULT_CAPS[operation], len(body), (first, start, end)
    )


def _around(operation: Operation, around: bytes, at: int) -> _Said | None:
    """What is said around a text that was cut out ``at`` some place; None where it may be another."""
    way = _WAYS[operation]
    try:
        fields = way.decode(way.empty.join((around[:at], around[at:])))
    except msgspec.DecodeError:
        return None
    if around.find(b"\\u") >= 0 or len(_KEYS.findall(around)) != len(fields):
        return None
    if len(around) > _FEW_MEMBERS_BYTES and around.count(b":") > MEMBERS_MAX:
        return None
    named = _MODEL.search(around)
    if named is None:
        return None
    cap = fields.get("max_completion_tokens", fields.get("max_tokens"))
    first = around.find(b'"')
    return _Said(fields["model"], fields.get("stream", False), cap, first, *named.span(1))


def _is_wordless(around: bytes) -> bool:
    """Whether a caller's words cannot be in it: no string is a value but the model's, nor in an array or
    an object. No prompt outlives its request, nor what stands beside it.
    """
    nested = around.find(b"[") >= 0 or around.find(b"{") != around.rfind(b"{")
    return not nested and len(_WORDS.findall(around)) == 1


_kept: dict[tuple[Operation, bytes, int], _Said] = {}
