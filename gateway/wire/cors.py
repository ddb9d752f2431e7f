"""Which pages of other origins may read our answers: an allow-list, and the browser's question first.

A preflight is answered without a key, since browsers send none with it; it grants nothing that a key
does not. Unlisted origins get the answers that they would get without any of this. Pure.
Source: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

import re
from collections.abc import Mapping

METHODS = b"GET, HEAD, POST"
#: As long as browsers keep a preflight's answer at most (Chromium: two hours).
MAX_AGE_S = 7200
EXPOSED = (
    b"x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, x-tf-dropped, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
#: Names alone, as many as one line of ours may hold; we read few headers, so any may be sent.
_NAMES = re.compile(rb"[0-9A-Za-z_\-]+(?: *, *[0-9A-Za-z_\-]+)*\Z")
_NAMES_BYTES_MAX = 2048
Pairs = list[tuple[bytes, bytes]]


class Cors:
    """``origins``: exact, as browsers write them (``https://app.example.com``)."""

    def __init__(self, origins: frozenset[bytes]) -> None:
        self._origins = origins

    def grants(self, fields: Mapping[bytes, bytes]) -> Pairs:
        """What every answer carries, refusals too; caches must know that it depends on the origin."""
        origin = fields.get(b"origin")
        if origin is None or origin not in self._origins:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", EXPOSED),
        ]

    def preflight(self, method: str, fields: Mapping[bytes, bytes]) -> Pairs | None:
        """The answer's headers when a listed origin asks first; None for any other request."""
        if method != "OPTIONS" or fields.get(b"origin") not in self._origins:
            return None
        if b"access-control-request-method" not in fields:
            return None
        asked = fields.get(b"access-control-request-headers", b"")
        pairs = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        if len(asked) <= _NAMES_BYTES_MAX and _NAMES.match(asked):
            pairs.append((b"access-control-allow-headers", asked))
        return pairs


def cors_of(text: str) -> Cors | None:
    """``TF_CORS_ORIGINS``, separated by commas; None where it names nobody."""
    origins = frozenset(each.strip().encode() for each in text.split(",") if each.strip())
    return Cors(origins) if origins else None
