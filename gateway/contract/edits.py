"""The declared edits of a request body, as byte spans: nothing is parsed and written anew.

Model name, usage in streams, privileged inputs out, an output cap and a cache salt in. Pure.
"""

from typing import Literal

import msgspec

from gateway.contract.envelope import Envelope
from gateway.contract.spans import members, rebuild

_TRUE = b"true"


def edit(
    body: bytes,
    envelope: Envelope,
    *,
    upstream_model: str,
    ask_usage: Literal["continuous", "final"] | None,
    inject_cap: int | None,
    cache_salt: str | None,
) -> bytes:
    """The body for the engine. ``body`` is what ``envelope`` was parsed from."""
    replace: dict[str, bytes] = {}
    add: dict[str, bytes] = {}
    remove = set(envelope.dropped)
    if upstream_model != envelope.model:
        replace["model"] = msgspec.json.encode(upstream_model)
    if envelope.stream and ask_usage is not None:
        replace["stream_options"] = _asking(envelope.stream_options, ask_usage)
    elif envelope.stream_options is not None and ask_usage is None:
        # Without a stream engines refuse the field; where they know no usage they refuse it too.
        remove.add("stream_options")
    if inject_cap is not None:
        remove.add("max_completion_tokens")  # present only as null
        replace["max_tokens"] = b"%d" % inject_cap
    if cache_salt is not None:
        add["cache_salt"] = msgspec.json.encode(cache_salt)
    if not (replace or add or remove):
        return body
    return rebuild(body, envelope.members, remove=frozenset(remove), replace=replace, add=add)


def _asking(options: bytes | None, ask: Literal["continuous", "final"]) -> bytes:
    wanted = {"include_usage": _TRUE}
    if ask == "continuous":
        wanted["continuous_usage_stats"] = _TRUE
    if options is None:
        options = b"{}"
    found = members(options, "stream_options")
    remove = frozenset() if ask == "continuous" else frozenset({"continuous_usage_stats"})
    return rebuild(options, found, replace=wanted, remove=remove)
