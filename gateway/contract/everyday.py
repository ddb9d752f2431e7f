"""The everyday body, read in a few steps of C: most requests say a model, messages and a cap.

``read`` knows such a body for certain or says None, and then ``envelope.parse`` reads it the long way,
which is also the one that words every error. What makes it certain: no key in it is written with an
escape, and of the guarded keys each stands in the bytes exactly once, so that the one found is the one
at the top level. Tests hold both ways against each other.
"""

import re
from typing import Any, TypedDict

import msgspec

from gateway.contract import media
from gateway.contract.envelope import CAP_MAX, DEFAULT_CAPS, MODEL_CHARS_MAX, Envelope, Operation
from gateway.contract.skeleton import DEPTH_MAX
from gateway.contract.spans import GUARDED, MEMBERS_MAX

#: A longer one is scanned (``spans``).
BODY_BYTES_MAX = 16_384
#: All that such a body may have of what is guarded; with any other field of it, it goes the long way.
KNOWN = frozenset(("model", "messages", "prompt", "stream", "max_tokens", "max_completion_tokens"))

_Fields = TypedDict(
    "_Fields",
    {
        **dict.fromkeys(GUARDED, msgspec.Raw),  # type: ignore[misc]  # the names are the fields
        "model": str,
        "prompt": str,
        "stream": bool,
        "max_tokens": int,
        "max_completion_tokens": int,
    },
    total=False,
)
_DECODER: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(_Fields)
_KEYS = re.compile(rb'"(?:%b)"[ \t\r\n]*+:' % b"|".join(sorted(key.encode() for key in GUARDED)))
_MODEL = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]++")')
_MESSAGES = re.compile(rb'"messages"[ \t\r\n]*+:[ \t\r\n]*+\[')
_FIRST = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+(?=")')


def read(body: bytes, operation: Operation) -> Envelope | None:
    """The envelope of an everyday body of chat or completions; None where it may be another."""
    if len(body) > BODY_BYTES_MAX or b"\\u" in body or media.MARK in body:
        return None
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX or body.count(b":") > MEMBERS_MAX:
        return None
    try:
        if not body.isascii():
            body.decode()
        fields = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not fields.keys() <= KNOWN or len(_KEYS.findall(body)) != len(fields):
        return None
    named = _MODEL.search(body)
    first = _FIRST.match(body)
    if named is None or first is None or len(fields["model"]) > MODEL_CHARS_MAX:
        return None
    cap = fields.get("max_tokens")
    if operation == "chat":
        if _MESSAGES.search(body) is None:
            return None
        cap = fields.get("max_completion_tokens", cap)
    elif operation != "completions" or "prompt" not in fields or "max_completion_tokens" in fields:
        return None
    if cap is not None and not 0 <= cap <= CAP_MAX:
        return None
    start, end = named.span(1)
    return Envelope(
        operation,
        fields["model"],
        fields.get("stream", False),
        cap,
        DEFAULT_CAPS[operation],
        len(body),
        (first.end(), start, end),
    )
