"""The deadlines of one attempt: first event, gap between chunks, total, and silence.

On the coarse wheel. Not here: what a deadline means to the
request, which the callbacks decide.
"""

from collections.abc import Callable

from gateway.wire.deadlines import Deadline, Wheel


class Watch:
    """Starts when the request's bytes went upstream. ``on_late(committed)`` runs once at most.

    One deadline for all four: it is set for the soonest, and looks what is due when it comes. A chunk
    only notes the tick: after the first, in ``last_chunk`` and without a call. ``silence_s`` None: nobody waits for signs of life.
    """

    __slots__ = (
        "_committed",
        "_deadline",
        "_ends",
        "_gap",
        "_last_ping",
        "_on_late",
        "_on_silence",
        "_patience",
        "_silence",
        "_wheel",
        "last_chunk",
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
        self._on_late = on_late
        self._on_silence = on_silence
        now = self.last_chunk = self._last_ping = wheel.now
        ticks = wheel.ticks
        self._ends = now + ticks(total_s)
        self._patience = ticks(first_event_s)
        self._gap = ticks(gap_s)
        self._silence = 0 if silence_s is None else ticks(silence_s)
        self._deadline: Deadline = wheel.add_at(self._soonest(), self._look)

    def chunk(self) -> None:
        """Something of the answer went to the client."""
        self.last_chunk = self._wheel.now
        if not self._committed:
            self._committed = True
            self._patience = self._gap
            self._deadline.aim(self._soonest())

    def cancel(self) -> None:
        self._deadline.cancel()

    def _soonest(self) -> int:
        due = min(self._ends, self.last_chunk + self._patience)
        return min(due, self._last_sign() + self._silence) if self._silence else due

    def _last_sign(self) -> int:
        return max(self.last_chunk, self._last_ping)

    def _look(self) -> None:
        now = self._wheel.now
        if now >= self._ends or now >= self.last_chunk + self._patience:
            self._on_late(self._committed)
            return
        silent = self._silence and now >= self._last_sign() + self._silence
        if silent:
            self._last_ping = now
        self._deadline = self._wheel.add_at(self._soonest(), self._look)
        if silent:
            self._on_silence()
