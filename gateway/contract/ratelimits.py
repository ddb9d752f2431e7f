"""The x-ratelimit headers of an answer, in OpenAI's names and Go's durations.

One family for requests and one for tokens; each shows the limit that binds most: the one with the
least left. ``reset`` is the time to a full bucket, as OpenAI's is. Pure.
Source: https://platform.openai.com/docs/guides/rate-limits (headers).
"""

from quotas.limits import Charge, Level

FAMILIES = ("requests", "tokens")


def rate_headers(
    charges: tuple[Charge, ...], levels: tuple[Level, ...]
) -> list[tuple[bytes, bytes]]:
    """Header pairs for the limits that were evaluated; none for a family without a limit."""
    headers: list[tuple[bytes, bytes]] = []
    for family in FAMILIES:
        binding: tuple[Charge, Level] | None = None
        for charge, level in zip(charges, levels, strict=True):
            if charge.limit.dimension == family and (
                binding is None or level.remaining < binding[1].remaining
            ):
                binding = (charge, level)
        if binding is None:
            continue
        charge, level = binding
        name = family.encode()
        headers += (
            (b"x-ratelimit-limit-" + name, b"%d" % charge.limit.per_minute),
            (b"x-ratelimit-remaining-" + name, b"%d" % max(0, level.remaining)),
            (b"x-ratelimit-reset-" + name, duration(level.reset_ms)),
        )
    return headers


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
