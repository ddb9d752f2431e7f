"""Billing periods: calendar months in UTC, as integers such as 202611.

A statement closes a period for ever; what comes late goes to the first one still open. Not here:
calendar quotas of limits, which run in a tenant's own time zone.
"""

from calendar import timegm
from datetime import UTC, datetime
from functools import lru_cache

DAY_MS = 86_400_000
DECEMBER = 12
FIRST = 197001


def period_of(at_ms: int) -> int:
    """The period of a moment (Unix ms).

    >>> period_of(1_795_000_000_000)
    202611
    """
    return _period_of_day(at_ms // DAY_MS)


def next_period(period: int) -> int:
    """The month after.

    >>> next_period(202612)
    202701
    """
    year, month = divmod(period, 100)
    return (year + 1) * 100 + 1 if month == DECEMBER else period + 1


def open_period(at_ms: int, closed_through: int) -> int:
    """Where something of that moment is booked when everything up to ``closed_through`` is closed
    (0: nothing is).
    """
    wanted = period_of(at_ms)
    return wanted if wanted > closed_through else next_period(closed_through)


def bounds_ms(period: int) -> tuple[int, int]:
    """[from, to) in Unix ms. Raises ``ValueError`` for a month that is none."""
    return _start_ms(period), _start_ms(next_period(period))


def parse_period(text: str) -> int:
    """Of "2026-11" or "202611"; raises ``ValueError`` saying what was expected."""
    digits = text.replace("-", "", 1)
    if len(digits) == 6 and digits.isascii() and digits.isdigit():  # noqa: PLR2004
        period = int(digits)
        if 1 <= period % 100 <= DECEMBER and period >= FIRST:
            return period
    raise ValueError(f"period: {text[:20]!r}: expected a month such as 2026-11")


def format_period(period: int) -> str:
    """As operators write it.

    >>> format_period(202611)
    '2026-11'
    """
    return f"{period // 100:04d}-{period % 100:02d}"


@lru_cache(maxsize=10_000)
def _period_of_day(day: int) -> int:
    """Days of UTC have no seconds between months."""
    moment = datetime.fromtimestamp(day * (DAY_MS // 1000), UTC)
    return moment.year * 100 + moment.month


def _start_ms(period: int) -> int:
    year, month = divmod(period, 100)
    return timegm((year, month, 1, 0, 0, 0)) * 1000
