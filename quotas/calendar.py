"""Periods of calendar quotas: which day, week or month an instant falls in, and where it begins and ends.

Pure: the instant and the time zone are arguments. A gateway passes two adjoining periods with each
charge of a quota, and the store's own clock chooses between them, so that no gateway's clock decides
which period is charged. Days are civil days of the zone (23 to 25 hours where clocks change); weeks
begin on Monday (ISO 8601). Not here: what is used of a period (``quotas.store``), billing months (``quotas.periods``).
"""

from datetime import UTC, date, datetime, timedelta, tzinfo

import msgspec

#: A store's clock may be this far behind the gateway's: the first period is the one of that long
#: ago, so that both periods are at hand around the turn.
SKEW_MS = 300_000
#: The end of a lifetime: the year 2286; still exact everywhere.
FOREVER_MS = 9_999_999_999_999
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WINDOWS = ("day", "week", "month", "lifetime")


class Periods(msgspec.Struct, frozen=True, array_like=True):
    """A period and the one that begins when it ends. Bounds are Unix ms; ids are unique per window."""

    this_id: str
    begins_ms: int
    ends_ms: int
    next_id: str
    next_ends_ms: int


LIFETIME = Periods("life", 0, FOREVER_MS, "afterlife", FOREVER_MS)


def periods_at(window: str, unix_ms: int, zone: tzinfo = UTC) -> Periods:
    """The periods of ``window`` ("day", "week", "month", "lifetime") around an instant.

    Good until ``stale_ms`` of the result: keep it and ask again then.

    >>> periods_at("day", 1_764_115_200_000).this_id  # 2025-11-26T00:00:00Z: yesterday, within skew
    '2025-11-25'
    >>> periods_at("month", 1_764_115_200_000).next_id
    '2025-12'
    """
    if window == "lifetime":
        return LIFETIME
    instant = datetime.fromtimestamp((unix_ms - SKEW_MS) // 1000, zone)
    first = _first_day(window, instant.date())
    second = _following(window, first)
    third = _following(window, second)
    if _midnight_ms(second, zone) == _midnight_ms(third, zone):  # Samoa had no 30 December 2011
        second, third = third, _following(window, third)
    return Periods(
        _name(window, first),
        _midnight_ms(first, zone),
        _midnight_ms(second, zone),
        _name(window, second),
        _midnight_ms(third, zone),
    )


def stale_ms(periods: Periods) -> int:
    """The Unix ms from which a gateway should ask for new periods."""
    return periods.ends_ms + SKEW_MS


def covering(periods: Periods, now_ms: int) -> int:
    """0: the store's time is in the first period; 1: in the next; -1: in neither."""
    if periods.begins_ms <= now_ms < periods.ends_ms:
        return 0
    if periods.ends_ms <= now_ms < periods.next_ends_ms:
        return 1
    return -1


def _first_day(window: str, day: date) -> date:
    if window == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if window == "week" else day


def _following(window: str, first: date) -> date:
    if window == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if window == "week" else 1)


def _name(window: str, first: date) -> str:
    if window == "month":
        return first.strftime("%Y-%m")
    if window == "week":
        year, week, _ = first.isocalendar()
        return f"{year}-W{week:02d}"
    return first.isoformat()


def _midnight_ms(day: date, zone: tzinfo) -> int:
    """The day's first instant; where clocks skip midnight, the instant they skip to."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return (midnight - EPOCH) // timedelta(milliseconds=1)
