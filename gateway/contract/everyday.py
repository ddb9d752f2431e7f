"""The everyday body, read in a few steps of C: most requests say a model, messages and a cap.

``read`` knows such a body for certain or says None, and then ``envelope.parse`` reads it the long way,
which is also the one that words every error. What makes it certain: the text (messages or prompt) is
one value and lies where its key was found; in all around it no key is written with an escape, and of
the guarded keys each stands exactly once, so that the one found is the one at the top level. Tests hold
both ways against each other.
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


class _Chat(TypedDict, total=False):
    model: str
    messages: msgspec.Raw
    stream: bool
    max_tokens: _Cap
    max_completion_tokens: _Cap


class _Completion(TypedDict, total=False):
    model: str
    prompt: msgspec.Raw
    stream: bool
    max_tokens: _Cap


class _Way(NamedTuple):
    """``decode`` reads all that an everyday body of the operation may have of what is guarded; with any
    other field of it, it goes the long way. ``key``: of its text, ``begins``: where that is.
    """

    decode: Callable[[bytes], dict[str, Any]]
    key: str
    begins: re.Pattern[bytes]
    default_cap: int | None


_WAYS: dict[Operation, _Way] = {
    "chat": _Way(
        msgspec.json.Decoder(_Chat).decode,  # type: ignore[arg-type]  # a dict at run time
        "messages",
        re.compile(rb'"messages"[ \t\r\n]*+:[ \t\r\n]*+(?=\[)'),
        DEFAULT_CAPS["chat"],
    ),
    "completions": _Way(
        msgspec.json.Decoder(_Completion).decode,  # type: ignore[arg-type]  # as above
        "prompt",
        re.compile(rb'"prompt"[ \t\r\n]*+:[ \t\r\n]*+(?=")'),
        DEFAULT_CAPS["completions"],
    ),
}
_KEYS = re.compile(rb'"(?:%b)"[ \t\r\n]*+:' % b"|".join(sorted(key.encode() for key in GUARDED)))
#: So many bytes are surely no more characters.
_MODEL = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]{1,%d}+")' % MODEL_CHARS_MAX)


def read(body: bytes, operation: Operation) -> Envelope | None:
    """The envelope of an everyday body of chat or completions; None where it may be another."""
    # ``find`` and ``replace`` go by memchr; of bytes, ``in`` is several times as long, ``count`` ten.
    if len(body) > BODY_BYTES_MAX or body.find(media.MARK) >= 0:
        return None
    if len(body) - len(body.replace(b"[", b"").replace(b"{", b"")) > DEPTH_MAX:
        return None
    try:
        decode, key, begins, default_cap = _WAYS[operation]
        if not body.isascii():
            body.decode()
        fields = decode(body)
        text = fields[key]
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = begins.search(body)
    if found is None:
        return None
    start = found.end()
    if not body.startswith(text, start):
        return None
    end = start + len(text)
    around = body[:start] + body[end:]
    if around.find(b"\\u") >= 0 or len(_KEYS.findall(around)) != len(fields):
        return None
    if len(around) > _FEW_MEMBERS_BYTES and around.count(b":") > MEMBERS_MAX:
        return None
    named = _MODEL.search(body, 0, start) or _MODEL.search(body, end)
    if named is None:
        return None
    model_start, model_end = named.span(1)
    return Envelope(
        operation,
        fields["model"],
        fields.get("stream", False),
        fields.get("max_completion_tokens", fields.get("max_tokens")),
        default_cap,
        len(body),
        (body.find(b'"'), model_start, model_end),
    )
