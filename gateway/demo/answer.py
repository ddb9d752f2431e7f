"""One answer of the demo engine: written whole or frame by frame, with the faults it was told.

The faults are those that held when the request came. Not here: what is said (``demo.shapes``).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from gateway.demo.batch import Batch, Choice, Generation
from gateway.demo.connection import Connection, Headers
from gateway.demo.faults import Faults, Seen
from gateway.demo.shapes import (
    DONE,
    JSON,
    ChoiceText,
    Counts,
    Frames,
    chat_body,
    error_event,
    text_body,
)

GARBLE = b'data: {"id":"garbled","choices":[{"index":\xff0,,\n\n'


class Answer:
    def __init__(self, connection: Connection, seen: Seen, batch: Batch, faults: Faults) -> None:
        self.seen = seen
        self._connection = connection
        self._batch = batch
        self._faults = msgspec.structs.replace(faults)
        self._frames = 0
        self._timer: asyncio.TimerHandle | None = None
        self._generation: Generation | None = None
        self._begun = False
        connection.on_gone = self._gone

    # -- whole --------------------------------------------------------------------------------

    def whole(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()
    ) -> None:
        """Pages: no faults but those of the connection."""
        self.seen.status = status
        self._connection.respond(status, body, content_type, headers)
        self._end("finished")
        self._connection.done()

    def refuse(self, status: int, body: bytes, headers: Headers = ()) -> None:
        def write() -> None:
            self.seen.status = status
            self._connection.respond(status, body, JSON, headers)
            self._end("refused")
            self._connection.done(self._faults.extra_bytes)

        self._later(write)

    def whole_late(self, body: bytes) -> None:
        """An answer of the model, with the faults of the model."""
        self._later(lambda: self._write_whole(body))

    def _write_whole(self, body: bytes) -> None:
        if self._faults.die_after_frames is not None:
            self._die()
            return
        if self._faults.stall_after_frames is not None:
            return
        if self._faults.garble_frame is not None:
            body = body[: len(body) // 2] + b"\xff,," + body[len(body) // 2 :]
        self.seen.status = 200
        off = self._faults.length_off_by
        self._connection.respond(200, body, length_off_by=off)
        self._end("finished")
        if off > 0:
            self._connection.cut()
        else:
            self._connection.done(self._faults.extra_bytes)

    # -- generated ----------------------------------------------------------------------------

    def generate(self, generation: Generation, request_id: str, created_s: int, model: str) -> None:
        asked = generation.asked
        self._generation = generation
        self.seen.prompt_tokens = generation.prompt_tokens
        if asked.stream:
            frames = Frames(request_id, created_s, model, chat=asked.chat)
            generation.on_step = lambda moved: self._step(frames, generation, moved)
        else:
            make = chat_body if asked.chat else text_body
            generation.on_step = lambda _moved: self._step_whole(
                generation,
                lambda: make(request_id, created_s, model, _texts(generation), self._sums()),
            )
        self._later(lambda: self._begin(generation))

    def _begin(self, generation: Generation) -> None:
        stream = generation.asked.stream
        silent = 0 in (self._faults.die_after_frames, self._faults.stall_after_frames)
        if stream and not silent:
            self._begun = True
            self.seen.status = 200
            self._connection.begin()
        if stream and self._faults.error_first:
            self._write(error_event(500, "The engine was told to fail."))
            self._write(DONE)
            self._finish("refused")
            return
        self._batch.add(generation)

    def _step_whole(self, generation: Generation, body: Callable[[], bytes]) -> None:
        faults = self._faults
        if faults.die_after_frames is not None and generation.steps >= faults.die_after_frames:
            self._die()
        elif faults.stall_after_frames is not None and (
            generation.steps >= faults.stall_after_frames
        ):
            self._batch.abort(generation)
        elif generation.finished:
            self._write_whole_generated(body())
        self._count()

    def _write_whole_generated(self, body: bytes) -> None:
        faults = self._faults
        faults.die_after_frames = faults.stall_after_frames = None  # the answer came before them
        self._write_whole(body)

    def _step(self, frames: Frames, generation: Generation, moved: list[Choice]) -> None:
        asked = generation.asked
        running = asked.continuous_usage and self._faults.usage == "asked"
        final = asked.include_usage and self._faults.usage != "none"
        if generation.steps == 1 and asked.chat:
            for choice in moved:
                counts = Counts(choice.prompt_tokens, 0) if running else None
                if not self._write(frames.role(choice.index, counts)):
                    return
        for choice in moved:
            counts = Counts(choice.prompt_tokens, choice.made) if running else None
            frame = frames.token(
                choice.index, choice.shown, choice.finish, choice.stop_reason, counts,
                sign=not final,
            )  # fmt: skip
            if not self._write(frame):
                return
        self._count()
        if generation.finished:
            counts = self._sums()
            if final and counts is not None and not self._write(frames.final(counts)):
                return
            if self._write(DONE):
                self._finish("finished")

    def _write(self, frame: bytes) -> bool:
        """False: a fault ended it, or the client is gone."""
        faults = self._faults
        if self.seen.ended:
            return False
        if faults.die_after_frames is not None and self._frames >= faults.die_after_frames:
            self._die()
            return False
        if faults.stall_after_frames is not None and self._frames >= faults.stall_after_frames:
            if self._generation is not None:
                self._batch.abort(self._generation)
                self._count()
            return False
        self._frames += 1
        self._connection.chunk(GARBLE if self._frames == faults.garble_frame else frame)
        return True

    # -- ends ---------------------------------------------------------------------------------

    def _finish(self, how: Literal["finished", "refused"]) -> None:
        self._connection.end_chunks()
        self._end(how)
        self._connection.done(self._faults.extra_bytes)

    def _die(self) -> None:
        self._stop_generating()
        self._end("aborted")
        self._connection.cut()

    def _gone(self) -> None:
        """The client closed: the engine stops working on it at once."""
        self._stop_generating()
        if self._timer is not None:
            self._timer.cancel()
        if not self.seen.ended:
            self._end("aborted")

    def _stop_generating(self) -> None:
        if self._generation is not None:
            self._batch.abort(self._generation)
            self._count()

    def _end(self, how: Literal["finished", "aborted", "refused"]) -> None:
        self._count()
        self.seen.ended = how
        self.seen.ended_s = time.monotonic()

    def _count(self) -> None:
        if self._generation is not None:
            self.seen.tokens = self._generation.tokens

    def _sums(self) -> Counts | None:
        generation = self._generation
        if generation is None or self._faults.usage == "none":
            return None
        return Counts(
            generation.prompt_tokens, generation.tokens, generation.cached, generation.created
        )

    def _later(self, write: Callable[[], None]) -> None:
        if self._faults.delay_s <= 0:
            write()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._faults.delay_s, write)


def _texts(generation: Generation) -> list[ChoiceText]:
    return [
        ChoiceText(choice.index, choice.text, choice.finish or "length", choice.stop_reason)
        for choice in generation.choices
    ]
