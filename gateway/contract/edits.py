"""The declared edits of a request's body: bytes cut, replaced or spliced in, never re-serialised.

Unknown fields, their order, escapes and spacing survive, and no edit makes a second key of one name:
a field that is there is changed where it stands. Not here: finding the spans (``contract.spans``).
"""

from functools import lru_cache
from typing import Literal

import msgspec

from gateway.contract.envelope import Envelope
from gateway.contract.tiers import FIELD

#: (start, end, replacement); spans in order, not overlapping.
Edit = tuple[int, int, bytes]
WANTED: dict[str, tuple[str, ...]] = {
    "continuous": ("include_usage", "continuous_usage_stats"),
    "final": ("include_usage",),
}


def _whole(wanted: tuple[str, ...]) -> bytes:
    return b"{" + b",".join(b'"%b":true' % key.encode() for key in wanted) + b"}"


_ASKED = {how: b'"stream_options":%b,' % _whole(wanted) for how, wanted in WANTED.items()}


def edit(
    body: bytes,
    envelope: Envelope,
    upstream_model: str,
    ask_usage: Literal["continuous", "final"] | None,
    inject_cap: int | None,
    cache_salt: str | None,
) -> bytes:
    """The bytes an engine gets; ``body`` itself where nothing is to be changed.

    ``ask_usage``: counts a stream is to carry. ``inject_cap``: ``max_tokens`` where the caller gave
    none. ``cache_salt``: ours, in place of any of the caller's.
    """
    if envelope.marks is not None:
        # It has none of the fields that are changed, but the model's name.
        at, start, end = envelope.marks
        asked = ask_usage if envelope.stream else None
        put = _put_first(asked, inject_cap, cache_salt)
        if envelope.model == upstream_model:
            return body[:at] + put + body[at:] if put else body
        quoted = _quoted(upstream_model)
        return b"".join((body[:at], put, body[at:start], quoted, body[end:]))
    edits: list[Edit] = []
    added: list[bytes] = []
    cut = envelope.dropped
    if FIELD in envelope.index:
        cut = (*cut, FIELD)
    if cut:
        _remove(envelope, cut, edits)
    if envelope.model != upstream_model:
        _put(envelope, "model", _quoted(upstream_model), edits, added)
    if ask_usage is not None and envelope.stream:
        _ask(envelope, WANTED[ask_usage], edits, added)
    if inject_cap is not None:
        _put(envelope, "max_tokens", b"%d" % inject_cap, edits, added)
    if cache_salt is not None:
        added.append(b'"cache_salt":' + _quoted(cache_salt))
    if added:
        first = envelope.members[0]
        if cut:
            first = next(each for each in envelope.members if each.key not in cut)
        edits.append((first.start, first.start, b",".join(added) + b","))
    return _apply(body, edits) if edits else body


@lru_cache(maxsize=4096)
def _put_first(
    ask_usage: Literal["continuous", "final"] | None, inject_cap: int | None, cache_salt: str | None
) -> bytes:
    """The members to put before all others of a body that has none of them; the same again and again."""
    put = b"" if ask_usage is None else _ASKED[ask_usage]
    if inject_cap is not None:
        put += b'"max_tokens":%d,' % inject_cap
    if cache_salt is not None:
        put += b'"cache_salt":' + _quoted(cache_salt) + b","
    return put


@lru_cache(maxsize=4096)
def _quoted(name: str) -> bytes:
    """Of a model or a tenant: the same again and again."""
    return msgspec.json.encode(name)


def _remove(envelope: Envelope, cut: tuple[str, ...], edits: list[Edit]) -> None:
    """These members with the comma after them; at the end of the object, the one before."""
    members = envelope.members
    dropped = [at for at, member in enumerate(members) if member.key in cut]
    # ``model`` is always there and never cut, so one is kept.
    last_kept = max(at for at, member in enumerate(members) if member.key not in cut)
    edits += [(members[at].start, members[at + 1].start, b"") for at in dropped if at < last_kept]
    if dropped[-1] > last_kept:
        edits.append((members[last_kept].end, members[-1].end, b""))


def _put(envelope: Envelope, key: str, value: bytes, edits: list[Edit], added: list[bytes]) -> None:
    at = envelope.index.get(key)
    if at is None:
        added.append(b'"' + key.encode() + b'":' + value)
    else:
        edits.append((envelope.members[at].value, envelope.members[at].end, value))


def _ask(
    envelope: Envelope, wanted: tuple[str, ...], edits: list[Edit], added: list[bytes]
) -> None:
    """``stream_options`` with the wanted flags true, whatever is there already."""
    options = envelope.options
    whole = _whole(wanted)
    if options is None:
        _put(envelope, "stream_options", whole, edits, added)
        return
    held = envelope.members[envelope.index["stream_options"]]
    if not options.members:
        edits.append((held.value, held.end, whole))
        return
    missing = b"".join(b'"%s":true,' % key.encode() for key in wanted if key not in options.index)
    if missing:
        at = held.value + options.members[0].start
        edits.append((at, at, missing))
    for key in wanted:
        if key in options.index:
            flag = options.members[options.index[key]]
            edits.append((held.value + flag.value, held.value + flag.end, b"true"))


def _apply(body: bytes, edits: list[Edit]) -> bytes:
    edits.sort()
    parts: list[bytes] = []
    at = 0
    for start, end, replacement in edits:
        parts += (body[at:start], replacement)
        at = end
    parts.append(body[at:])
    return b"".join(parts)
