"""What a receiver's answer means for a delivery, and when to try again.

A batch of usage is refused for what is in it, or for what the receiver is: only the first speaks of
an event, which is then parked; all else is tried again for ever. Delays double with jitter up to a
ceiling, and are never shorter than the receiver's ``Retry-After`` (RFC 9110, 10.2.3). Not here:
sending (``gateway.control.deliveries``).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

Verdict = Literal["delivered", "refused", "again"]
#: Bad request, conflict, too large, unprocessable: of the body, and the same body gets it again. Not
#: 401, 403 or 404, which a wrong key or address gives to every event: nothing is lost over those.
OF_THE_EVENT = frozenset({400, 409, 413, 422})
FIRST_DELAY_S = 1.0
DELAY_MAX_S = 300.0
#: A receiver may ask for more patience than ours, up to this.
RETRY_AFTER_MAX_S = 3_600.0


def verdict(status: int) -> Verdict:
    """Of an HTTP status.

    >>> verdict(202), verdict(422), verdict(429), verdict(302)
    ('delivered', 'refused', 'again', 'again')
    """
    if 200 <= status < 300:  # noqa: PLR2004 -- the class of success
        return "delivered"
    return "refused" if status in OF_THE_EVENT else "again"


def delay_s(failures: int, chance: float, asked_s: float | None) -> float:
    """How long to wait after the ``failures``-th failure in a row (1 is the first). ``chance`` in
    [0, 1) takes up to half off; ``asked_s`` is the receiver's own wish.
    """
    doubled = FIRST_DELAY_S * 2.0 ** min(failures - 1, 32)
    own = min(DELAY_MAX_S, doubled) * (1.0 - chance / 2)
    return own if asked_s is None else max(own, min(asked_s, RETRY_AFTER_MAX_S))


def retry_after_s(headers: Iterable[tuple[bytes, bytes]], now_s: float) -> float | None:
    """The wish of an answer, in seconds from ``now_s`` (Unix); None where it has none that can be
    read.
    """
    for name, value in headers:
        if name.lower() != b"retry-after":
            continue
        text = value.decode("latin-1").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.fromtimestamp(now_s, UTC)).total_seconds())
    return None
