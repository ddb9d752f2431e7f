"""How far the ledger is behind the journals of this host. Not here: shipping (``shipper``)."""

import time
from collections.abc import Sequence

import msgspec

from gateway.metering.backlog import Backlog
from quotas.record import decode


class Lag(msgspec.Struct, frozen=True):
    """How far the ledger is behind. ``oldest_unshipped_s``: since that request ended; 0 = none."""

    folders: int
    journal_bytes: int
    unshipped: int
    unsettled: int
    oldest_unshipped_s: float


def lag_of(backlogs: Sequence[Backlog]) -> Lag:
    """Of all folders, as they were last read."""
    return Lag(
        len(backlogs),
        sum(backlog.bytes_used for backlog in backlogs),
        sum(len(backlog.unshipped) for backlog in backlogs),
        sum(len(backlog.unsettled) for backlog in backlogs),
        max((_age_s(backlog) for backlog in backlogs), default=0.0),
    )


def _age_s(backlog: Backlog) -> float:
    if not backlog.unshipped:
        return 0.0
    try:
        record = decode(backlog.payload(backlog.unshipped[0]))
    except (OSError, msgspec.MsgspecError):
        return 0.0
    return max(0.0, time.time() - (record.started_ms + record.total_ms) / 1000)
