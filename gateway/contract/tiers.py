"""``service_tier``: which of them a request may name, and the one it got, told in its answer.

What is not served as another tier is served as ``default``, which is also what ``auto`` comes to; a
tier that has no price here is refused. The field is between the caller and us: engines do not see it.
Source: https://platform.openai.com/docs/api-reference/chat/create (service_tier). Pure. Not here:
what a tier costs (``quotas.pricing``).
"""

import re

AUTO, DEFAULT = "auto", "default"
FIELD = "service_tier"
#: As OpenAI's contract has them.
TIERS = (AUTO, DEFAULT, "flex", "scale", "priority")
#: As engines that know the field say it of themselves; a quote within a text has a backslash before it.
_SAID = re.compile(rb'(?<!\\)"service_tier"\s*:\s*(?:null|"[a-z]{0,32}")')


def tier_of(asked: str | None) -> str:
    """The tier that a request is to be served and sold as."""
    return DEFAULT if asked is None or asked == AUTO else asked


def tell_tier(frame: bytes, tier: bytes) -> bytes:
    """The event, or whole answer, with ``service_tier``; never a second one.

    >>> tell_tier(b'data: {"id":"a"}', b"flex")
    b'data: {"service_tier":"flex","id":"a"}'
    """
    told = b'"service_tier":"%b"' % tier
    found = _SAID.search(frame)
    if found is not None:
        return b"".join((frame[: found.start()], told, frame[found.end() :]))
    at = frame.find(b"{") + 1
    rest = frame[at:]
    comma = b"" if rest.lstrip()[:1] == b"}" else b","
    return b"".join((frame[:at], told, comma, rest))
