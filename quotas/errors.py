"""What quotas raise. Facts only; the gateway's table turns them into answers."""


class QuotaError(Exception):
    """Base of this package's errors."""


class StoreUnavailable(QuotaError):
    """The store did not answer in time or refused the connection."""
