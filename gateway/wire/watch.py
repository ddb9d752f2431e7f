"""The deadlines of one attempt: first event, gap between chunks, total, and silence.

On the coarse wheel; a chunk only moves two due times. Not here: what a deadline means to the
request, which the callbacks decide.
"""

from collections.abc import Callable

from gateway.wire.deadlines import Deadline, Wheel


class Watch:
    """Starts when the request's bytes went upstream. ``on_late(committed)`` runs once at most."""

    __slots__ = (
        "_committed",
        "_gap_s",
        "_on_late",
        "_on_silence",
        "_progress",
        "_silence",
        "_silence_s",
        "_total",
        "_wheel",
    )

    def __init__(
        self,
        wheel: Wheel,
        *,
        first_event_s: float,
        gap_s: float,
        total_s: float,
        silence_s: float | None,
        on_late: Callable[[bool], None],
        on_silence: Callable[[], None],
    ) -> None:
        self._wheel = wheel
        self._committed = False
        self._gap_s = gap_s
        self._silence_s = silence_s
        self._on_late = on_late
        self._on_silence = on_silence
        self._progress: Deadline = wheel.add(first_event_s, self._late)
        self._total: Deadline = wheel.add(total_s, self._late)
        self._silence: Deadline | None = (
            None if silence_s is None else wheel.add(silence_s, self._silent)
        )

    def chunk(self) -> None:
        """Something of the answer went to the client."""
        self._committed = True
        self._progress.move(self._gap_s)
        if self._silence is not None and self._silence_s is not None:
            self._silence.move(self._silence_s)

    def cancel(self) -> None:
        self._progress.cancel()
        self._total.cancel()
        if self._silence is not None:
            self._silence.cancel()

    def _late(self) -> None:
        self.cancel()
        self._on_late(self._committed)

    def _silent(self) -> None:
        if self._silence_s is not None:
            self._silence = self._wheel.add(self._silence_s, self._silent)
        self._on_silence()
