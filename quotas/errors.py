"""What quotas raise. Facts only; the gateway's table turns them into answers."""


class QuotaError(Exception):
    """Base of this package's errors."""


class StoreUnavailable(QuotaError):
    """The store did not answer in time or refused the connection."""


class ReservationRefused(QuotaError):
    """The reservation was released before it was made, or is malformed: it must not be admitted."""


class MoneyError(QuotaError, ValueError):
    """A text is not an amount or a price."""
