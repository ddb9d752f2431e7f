"""The host's counters: the sum over data processes, those that ended included.

Each process sends absolute values since it began. When another process takes its slot, the last
values of the old one go into a base, so no sum ever falls; the base outlives a restart of control,
but not of the host. Not here: how they are rendered (``gateway.control.metrics``).
"""

from pathlib import Path

import msgspec

from gateway.datafolder import write_private
from gateway.link.messages import Counters

Series = dict[str, dict[str, float]]
Observed = dict[str, dict[str, list[float]]]
#: Gauges that are no sum over processes.
_FOLDS = {"tf_snapshot_version": min, "tf_settle_lag_seconds": max, "tf_processes_known": max}


class Sums(msgspec.Struct):
    """metric -> label values -> number; histograms as ``Counters`` has them."""

    counters: Series = {}
    gauges: Series = {}
    histograms: Observed = {}


class _Kept(msgspec.Struct):
    host_pid: int
    base: Sums


class Totals:
    """``host_pid`` is the supervisor's: a base kept by another host's life is not ours."""

    def __init__(self, file: Path, host_pid: int) -> None:
        self._file = file
        self._host_pid = host_pid
        self._base = self._read()
        self._latest: dict[int, Counters] = {}  # by slot
        self._present: set[tuple[int, int]] = set()

    def take(self, message: Counters) -> None:
        """The newest values of one process."""
        known = self._latest.get(message.slot)
        if known is not None and known.pid != message.pid:
            _add(self._base, known)
            write_private(
                self._file, msgspec.json.encode(_Kept(host_pid=self._host_pid, base=self._base))
            )
        self._latest[message.slot] = message
        self._present.add((message.slot, message.pid))

    def leave(self, slot: int, pid: int) -> None:
        """A process parted: what it counted stays, what it holds (its gauges) does not."""
        self._present.discard((slot, pid))

    def sums(self) -> Sums:
        total = msgspec.convert(msgspec.to_builtins(self._base), Sums)
        for message in self._latest.values():
            _add(total, message)
            if (message.slot, message.pid) in self._present:
                _add_gauges(total.gauges, message.gauges)
        return total

    def _read(self) -> Sums:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError):
            return Sums()
        return kept.base if kept.host_pid == self._host_pid else Sums()


def _add(total: Sums, message: Counters) -> None:
    for name, series in message.counters.items():
        into = total.counters.setdefault(name, {})
        for labels, value in series.items():
            into[labels] = into.get(labels, 0) + value
    for name, observed in message.histograms.items():
        kept = total.histograms.setdefault(name, {})
        for labels, values in observed.items():
            old = kept.get(labels) or [0.0] * len(values)
            kept[labels] = [a + b for a, b in zip(old, values, strict=True)]


def _add_gauges(total: Series, gauges: Series) -> None:
    for name, series in gauges.items():
        fold = _FOLDS.get(name)
        into = total.setdefault(name, {})
        for labels, value in series.items():
            if labels not in into:
                into[labels] = value
            else:
                into[labels] = fold(into[labels], value) if fold else into[labels] + value
