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
#: Below it Go writes whole milliseconds.
SECOND_MS = 1000


class Family(msgspec.Struct, frozen=True):
    """The names of one family's headers, its first limit and the others: (index into the charges, its
    lines of a head as far as the number that remains); ``reset_line``, from there as far as the time.
    ``texts``: limits as text, by index.
    """

    limit: bytes
    remaining: bytes
    reset: bytes
    first: tuple[int, str]
    others: tuple[tuple[int, str], ...]
    reset_line: str
    texts: dict[int, bytes]


def families_of(limits: Sequence[Limit]) -> tuple[Family, ...]:
    """What can be known before a request; shadow limits are nobody's business."""
    made = []
    for name, dimensions in FAMILIES.items():
        texts = {
            index: b"%d" % (limit.per_minute or limit.capacity)
            for index, limit in enumerate(limits)
            if limit.dimension in dimensions and not limit.shadow
        }
        if texts:
            limit, remaining, reset = (b"x-ratelimit-%s-%s" % (k, name.encode()) for k in _KINDS)
            lines = b"%b: %%b\r\n%b: " % (limit, remaining)
            first, *others = [(index, (lines % text).decode()) for index, text in texts.items()]
            reset_line = f"\r\n{reset.decode()}: "
            made.append(Family(limit, remaining, reset, first, tuple(others), reset_line, texts))
    return tuple(made)


_KINDS = (b"limit", b"remaining", b"reset")


def rate_headers(families: tuple[Family, ...], levels: Sequence[Level]) -> Headers:
    """Header pairs for the limits that were evaluated; none for a family without a limit."""
    headers: Headers = []
    for family in families:
        index, level = _binding(family, levels)
        headers += (
            (family.limit, family.texts[index]),
            (family.remaining, b"%d" % max(0, level.remaining)),
            (family.reset, duration(level.reset_ms)),
        )
    return headers


def rate_lines(families: tuple[Family, ...], levels: Sequence[Level]) -> bytes:
    """The same as the lines of a head: what every answer carries, so written out in one loop."""
    lines = ""
    for family in families:
        index, line = family.first
        level = levels[index]
        least = level.remaining
        for index, text in family.others:
            if levels[index].remaining < least:
                level, line = levels[index], text
                least = level.remaining
        if least < 0:  # noqa: PLR1730  a call costs more
            least = 0
        reset_ms = level.reset_ms
        reset = f"{reset_ms}ms" if 0 <= reset_ms < SECOND_MS else duration(reset_ms).decode()
        lines += f"{line}{least}{family.reset_line}{reset}\r\n"
    return lines.encode()


def _binding(family: Family, levels: Sequence[Level]) -> tuple[int, Level]:
    """The limit with the least left, the first of them, and its level."""
    index = min(family.texts, key=lambda index: levels[index].remaining)
    return index, levels[index]


def duration(milliseconds: int) -> bytes:
    """Go's time.Duration notation.

    >>> duration(12), duration(1500), duration(360000), duration(3723004)
    (b'12ms', b'1.5s', b'6m0s', b'1h2m3.004s')
    """
    if milliseconds < SECOND_MS:
        return b"%dms" % max(0, milliseconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    if hours:
        return f"{hours}h{minutes}m{seconds}s".encode()
    if minutes:
        return f"{minutes}m{seconds}s".encode()
    return f"{seconds}s".encode()
