"""The x-ratelimit headers of an answer, in OpenAI's names and Go's durations.

One family for requests and one for tokens, whatever tokens and whatever window; each shows the limit
that binds most: the one with the least left. ``reset`` is the time to a full bucket, as OpenAI's is,
or to the next period. Pure.
Source: https://platform.openai.com/docs/guides/rate-limits (headers).
"""

from collections.abc import Sequence

import msgspec

from quotas.limits import Level, Limit

FAMILIES = {"requests": ("requests",), "tokens": ("tokens", "input_tokens", "output_tokens")}
Headers = list[tuple[bytes, bytes]]


class Family(msgspec.Struct, frozen=True):
    """The names of one family's headers, its first limit and the others: (index into the charges, limit
    as text); and ``lines``, its headers with the limit, what remains and the reset left open.
    """

    limit: bytes
    remaining: bytes
    reset: bytes
    first: tuple[int, bytes]
    others: tuple[tuple[int, bytes], ...]
    lines: bytes


def families_of(limits: Sequence[Limit]) -> tuple[Family, ...]:
    """What can be known before a request; shadow limits are nobody's business."""
    made = []
    for name, dimensions in FAMILIES.items():
        members = [
            (index, b"%d" % (limit.per_minute or limit.capacity))
            for index, limit in enumerate(limits)
            if limit.dimension in dimensions and not limit.shadow
        ]
        if members:
            limit, remaining, reset = (b"x-ratelimit-%s-%s" % (k, name.encode()) for k in _KINDS)
            lines = b"%b: %%b\r\n%b: %%d\r\n%b: %%b\r\n" % (limit, remaining, reset)
            made.append(Family(limit, remaining, reset, members[0], tuple(members[1:]), lines))
    return tuple(made)


_KINDS = (b"limit", b"remaining", b"reset")


def rate_headers(families: tuple[Family, ...], levels: Sequence[Level]) -> Headers:
    """Header pairs for the limits that were evaluated; none for a family without a limit."""
    headers: Headers = []
    for family in families:
        limit, level = _binding(family, levels)
        headers += (
            (family.limit, limit),
            (family.remaining, b"%d" % max(0, level.remaining)),
            (family.reset, duration(level.reset_ms)),
        )
    return headers


def rate_lines(families: tuple[Family, ...], levels: Sequence[Level]) -> bytes:
    """The same as the lines of a head: what every answer carries."""
    lines = b""
    for family in families:
        limit, level = _binding(family, levels)
        lines += family.lines % (limit, max(0, level.remaining), duration(level.reset_ms))
    return lines


def _binding(family: Family, levels: Sequence[Level]) -> tuple[bytes, Level]:
    """The limit with the least left, as text, and its level."""
    index, limit = family.first
    level = levels[index]
    for other, text in family.others:
        if levels[other].remaining < level.remaining:
            level, limit = levels[other], text
    return limit, level


def duration(milliseconds: int) -> bytes:
    """Go's time.Duration notation.

    >>> duration(12), duration(1500), duration(360000), duration(3723004)
    (b'12ms', b'1.5s', b'6m0s', b'1h2m3.004s')
    """
    if milliseconds < 1000:  # noqa: PLR2004 -- Go writes whole milliseconds below a second
        return b"%dms" % max(0, milliseconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    if hours:
        return f"{hours}h{minutes}m{seconds}s".encode()
    if minutes:
        return f"{minutes}m{seconds}s".encode()
    return f"{seconds}s".encode()
