"""One attempt's answer, from the engine's bytes to the client's: looked at once, edited, passed on.

The steady state of a stream is one read, one look at each frame, one write. It decides nothing about
tenants, limits or money: it is handed a fold that counts, and callbacks for commit and counts.
Its outcome is one future: ``Failed`` before commit (another endpoint may be tried), ``Ended`` after.
Bytes out are bytes in, less the declared edits: ``usage`` cut where the client did not ask, ``model``
made public where it differs. A finish is never forged.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from gateway.contract.errors import ContractError, UpstreamError, error_event
from gateway.contract.sse import FrameSplitter, FrameTooLarge, Kind, kind_of
from gateway.contract.steady import Steady
from gateway.contract.tiers import tell_tier
from gateway.contract.usage import (
    UsageFold,
    cut,
    error_in,
    fold_unary,
    is_json,
    rename,
    status_in,
    tell_cost,
)
from gateway.wire.heads import written
from gateway.wire.server import Reply
from gateway.wire.upstream import Upstream, UpstreamCut
from routing.attempts import FailureKind

UsageKept = Literal["none", "final", "all"]

#: A whole answer is held until its usage is read; embeddings of large batches are the largest.
UNARY_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 64 << 10
#: Comments held until the first event: an engine that only ever comments is not let grow.
EARLY_BYTES_MAX = 64 << 10
#: How a frame begins and ends that needs no second look: one line of one object.
OBJECT_BEGINS, OBJECT_ENDS = b"data: {", b"}\n\n"
#: Seconds; a date is not read, nor what no caller would wait for.
RETRY_AFTER = re.compile(rb"\d{1,5}(?:\.\d{1,6})?")
#: One newline: a comment line that can never end an event by itself.
PING = b": ping\n"
EVENT_STREAM = b"text/event-stream"
JSON = b"application/json"
#: no-transform and the nginx word keep proxies between us and the client from holding frames back.
STREAM_LINES = written(
    (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
)
JSON_LINES = written(((b"content-type", b"application/json"),))


class Failed(msgspec.Struct, frozen=True):
    """Nothing of the answer went to the client. ``status`` 0: the engine gave none.

    ``kind`` is one of ``routing.attempts``' failure kinds; ``body`` the engine's error body.
    ``reused``: the socket had served before and died without a byte: not the engine's failure.
    """

    kind: FailureKind
    status: int = 0
    body: bytes = b""
    retry_after_s: float | None = None
    reused: bool = False


class Ended(msgspec.Struct, frozen=True):
    """After commit. ``ending``: finished, or whatever cut it short."""

    ending: Literal[
        "finished", "engine_error", "client_abort", "timeout", "shutdown", "key_revoked"
    ]


class Listener(Protocol):
    """Who is told of an answer on its way, on the loop and in order."""

    def on_commit(self) -> None:
        """No other endpoint from here on."""

    def on_counts(self) -> None:
        """The fold changed; the bytes that carry the counts are not yet handed to the client's socket."""

    def on_chunk(self, events: int) -> None:
        """They are, with so many events of the model's (0: comments alone)."""

    def on_steady(self) -> None:
        """Both of these in one, where one choice that has begun makes its next tokens; the bytes follow."""

    def error_of(self, status: int, body: bytes) -> ContractError:
        """An engine's error in words that a caller may read."""


FINISHED = Ended("finished")
#: Of a whole answer, which has none; never fed.
NO_FRAMES = FrameSplitter()


class Relay:
    """The receiver of one upstream response. ``listener`` hears of it, never after the outcome is set.

    ``cost_of()``, where it is set: what the final counts cost, to be told in ``usage``; ``tier``: the
    service tier to be told. ``lines`` are the headers of the client's answer, content type apart, as
    ``heads.written`` makes them; ``release`` takes the connection back.
    """

    __slots__ = (
        "_done",
        "_fold",
        "_headers",
        "_lines",
        "_listener",
        "_names",
        "_parts",
        "_parts_bytes",
        "_release",
        "_reply",
        "_splitter",
        "_status",
        "_steady",
        "_stream",
        "_upstream",
        "_usage_kept",
        "committed",
        "cost_of",
        "outcome",
        "tier",
    )

    def __init__(
        self,
        reply: Reply,
        fold: UsageFold,
        stream: bool,  # noqa: FBT001 -- by place: each name is a search
        usage_kept: UsageKept,
        names: tuple[str, str] | None,
        lines: bytes,
        listener: "Listener",
        release: Callable[[Upstream], None],
    ) -> None:
        self.outcome: asyncio.Future[Failed | Ended] = asyncio.get_running_loop().create_future()
        self.committed = False
        self._reply = reply
        self._fold = fold
        self._stream = stream
        self._usage_kept = usage_kept
        self._names = names  # (upstream, public), None when equal
        self._lines = lines
        self._listener = listener
        self.cost_of: Callable[[], bytes] | None = None
        self.tier: bytes | None = None
        self._release = release
        self._upstream: Upstream | None = None
        self._splitter = FrameSplitter() if stream else NO_FRAMES
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []  # of a whole answer; of a stream, comments before its events
        self._parts_bytes = 0
        self._done = False  # [DONE] or the whole body was seen
        self._steady: Steady | None = None  # while the next read may be taken in one step

    def attach(self, upstream: Upstream) -> None:
        """The connection that carries the attempt; back-pressure goes to it from here on."""
        self._upstream = upstream
        self._reply.on_pause = upstream.pause
        self._reply.on_resume = upstream.resume

    # -- what ends it from outside -----------------------------------------------------------

    def stop(
        self,
        ending: Literal["client_abort", "timeout", "shutdown", "key_revoked"],
        error: ContractError | None = None,
    ) -> None:
        """Close the engine's connection now: that is the abort. ``error`` is a stream's last event."""
        if self.outcome.done():
            return
        if error is not None and self._reply.started and not self._reply.gone:
            self._reply.write(error_event(error))
            self._reply.finish()
        self._settle(Ended(ending))
        self._drop()

    def fail(self, kind: FailureKind) -> None:
        """Give the attempt up before commit: too slow to its first event."""
        if not self.outcome.done():
            self._settle(Failed(kind))
            self._drop()

    @property
    def attached(self) -> bool:
        """The response is over for the client, and the engine has not ended it yet."""
        return self._upstream is not None

    def drop(self) -> None:
        """Close a connection whose response does not end."""
        self._drop()

    # -- the receiver ------------------------------------------------------------------------

    def take_answer(self, content_type: bytes, body: bytes) -> bool:
        """A whole answer, read at once; any that is not as it should be goes the long way."""
        if self._stream or not content_type.startswith(JSON) or self.outcome.done():
            return False
        self._status = 200
        self._commit()
        self._answer(body)
        return True

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        self._headers = headers
        if status != 200:  # noqa: PLR2004 -- anything else is collected as an error
            return
        content_type = (self._header(b"content-type") or b"").lower()
        if not content_type.startswith(EVENT_STREAM if self._stream else JSON):
            self.fail("engine_5xx")
        elif not self._stream:
            self._commit()

    def take_chunks(self, data: bytes) -> int:
        """The steady state: a read that begins at a chunk's first byte, or several of its chunks;
        the bytes that were taken. The rest goes the long way.
        """
        steady = self._steady
        if steady is None:
            return 0
        out, taken = steady.take(data), len(data)
        if out is None:
            outs, taken = steady.take_each(data)
            if not outs:
                return 0
            out = b"".join(outs)
        self._listener.on_steady()
        reply = self._reply
        if not reply.gone:
            reply.transport.write(out)  # framed already
        return taken

    def on_body(self, data: bytes) -> None:
        if self.outcome.done():
            if self._done:
                self._drop()  # bytes after the end: that socket is not trusted again
            return
        if self._status == 200 and self._stream:  # noqa: PLR2004
            self._pump(data)
            return
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._status != 200:  # noqa: PLR2004
            if self._parts_bytes > ERROR_BYTES_MAX:
                self._refused()
        elif self._parts_bytes > UNARY_BYTES_MAX:
            self._end_badly(UpstreamError())

    def on_end(self) -> None:
        if self.outcome.done():
            self._hand_back()
        elif self._status != 200:  # noqa: PLR2004
            self._refused()
            self._hand_back()
        elif self._stream:
            self._finish_stream()
        else:
            self._finish_unary()

    def on_cut(self, failure: UpstreamCut) -> None:
        self._upstream = None
        if self.outcome.done():
            return
        if self._status not in (0, 200):
            self._refused()
            return
        self._cut_short("cut_before_head", reused=failure.reused and failure.before_any_byte)

    # -- streams -----------------------------------------------------------------------------

    def _pump(self, data: bytes) -> None:
        """The hot path: every complete frame is looked at once; one write goes out."""
        try:
            frames = self._splitter.feed(data)
        except FrameTooLarge as error:
            self._cut_short("engine_5xx", error)
            return
        if not frames:
            return
        fold = self._fold
        kept = self._usage_kept
        names = self._names
        out: list[bytes] = []
        events = 0
        for frame in frames:
            if frame[:7] != OBJECT_BEGINS or frame[-3:] != OBJECT_ENDS:
                kind = kind_of(frame)
                if kind is Kind.OTHER:  # a comment, or a field we do not know: as it is
                    out.append(frame)
                    continue
                if kind is Kind.DONE and (events or self.committed):
                    self._done = True
                    out.append(frame)
                    break
                if kind is not Kind.OBJECT:  # no JSON, or an end of nothing
                    self._end_at(out, events, "engine_5xx")
                    return
            failure = error_in(frame)
            if failure is not None:
                self._engine_said_error(failure, out, events)
                return
            if not self.committed and not events and not is_json(frame):
                self._cut_short("engine_5xx")
                return
            events += 1
            seen = fold.look(frame)
            edited: bytes | None = frame
            if seen and kept != "all" and not (kept == "final" and seen.final):
                edited = cut(frame)
            elif seen and self.cost_of is not None and seen.final:
                edited = tell_cost(frame, self.cost_of())
            if edited is not None:
                edited = rename(edited, *names) if names else edited
                out.append(edited if self.tier is None else tell_tier(edited, self.tier))
        if not self.committed:
            if not events:
                self._hold(out)
                return
            self._commit()
            out = self._parts + out
            self._parts.clear()
        self._listener.on_counts()
        self._send(out, events)
        if self._steady is None and not self._splitter.pending and fold.steady:
            self._become_steady()

    def _become_steady(self) -> None:
        """From here on reads that are one event of one choice take the short way."""
        if not self._done and self._reply.chunked and self.tier is None:
            self._steady = Steady(
                self._fold, cuts_usage=self._usage_kept != "all", names=self._names
            )

    def _send(self, out: list[bytes], events: int) -> None:
        if out:
            self._reply.write(out[0] if len(out) == 1 else b"".join(out))
            self._listener.on_chunk(events)
        if self._done:
            self._reply.finish()
            self._settle(FINISHED)

    def _hold(self, comments: list[bytes]) -> None:
        """Comments commit nothing; they go out with the first event."""
        self._parts += comments
        self._parts_bytes += sum(map(len, comments))
        if self._parts_bytes > EARLY_BYTES_MAX:
            self._cut_short("engine_5xx")

    def _end_at(
        self,
        before: list[bytes],
        events: int,
        kind: FailureKind,
        error: ContractError | None = None,
    ) -> None:
        """The stream ends at a frame of this read: what stood before it still goes out."""
        if events and not self.committed:
            self._commit()
            before = self._parts + before
            self._parts.clear()
        if self.committed and before:
            self._listener.on_counts()
            self._send(before, events)
        self._cut_short(kind, error)

    def _engine_said_error(self, body: bytes, before: list[bytes], events: int) -> None:
        """An error event: before commit it becomes the attempt's status, after it the last event."""
        status = status_in(body)
        if not self.committed and not events:
            self._settle(Failed(_kind_of(status), status, body))
            self._drop()
            return
        self._end_at(before, events, "engine_5xx", self._listener.error_of(status, body))

    def _finish_stream(self) -> None:
        """The response is over, and no [DONE] was seen: a cut, unless it only lacks its blank line."""
        if self.committed and kind_of(left := self._splitter.finish()) is Kind.DONE:
            self._done = True
            self._send([left], 0)
            self._hand_back()
            return
        self._cut_short("cut_before_head")

    def ping(self) -> None:
        """The stream has been silent: the head goes out and a comment; failover ends here."""
        if self.outcome.done() or not self._stream:
            return
        if not self._reply.started:
            self._start()
        self._reply.write(PING)

    def _cut_short(
        self, kind: FailureKind, error: ContractError | None = None, *, reused: bool = False
    ) -> None:
        if self.committed:
            self._end_badly(error or UpstreamError())
        else:
            self._settle(Failed(kind, 0, reused=reused))
            self._drop()

    def _end_badly(self, error: ContractError) -> None:
        """After commit, an error is one event and no [DONE]; a whole answer is the caller's to make."""
        if self._reply.started and not self._reply.gone:
            self._reply.write(error_event(error))
            self._reply.finish()
        self._settle(Ended("engine_error"))
        self._drop()

    # -- whole answers -----------------------------------------------------------------------

    def _finish_unary(self) -> None:
        body = b"".join(self._parts)
        self._parts.clear()
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        if not fold_unary(self._fold, body):
            self._end_badly(UpstreamError())
            return
        self._listener.on_counts()
        if self.cost_of is not None:
            body = tell_cost(body, self.cost_of())
        if self._names:
            body = rename(body, *self._names)
        if self.tier is not None:
            body = tell_tier(body, self.tier)
        self._reply.send_written(200, JSON_LINES + self._lines, body)
        self._listener.on_chunk(1)
        self._settle(FINISHED)
        self._hand_back()

    def _refused(self) -> None:
        after = self._header(b"retry-after")
        seconds = float(after) if after and RETRY_AFTER.fullmatch(after) else None
        self._settle(Failed(_kind_of(self._status), self._status, b"".join(self._parts), seconds))

    # -- both --------------------------------------------------------------------------------

    def _commit(self) -> None:
        self.committed = True
        self._listener.on_commit()
        if self._stream and not self._reply.started:
            self._start()

    def _start(self) -> None:
        self._reply.start(200, STREAM_LINES + self._lines)

    def _settle(self, outcome: Failed | Ended) -> None:
        self._steady = None
        if not self.outcome.done():
            self.outcome.set_result(outcome)
        self._reply.on_pause = self._reply.on_resume = None
        upstream = self._upstream
        if upstream is not None and upstream.paused:
            upstream.resume()  # the end of the response is still to be read

    def _hand_back(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._release(upstream)

    def _drop(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _header(self, name: bytes) -> bytes | None:
        for key, value in self._headers:
            if key == name:
                return value
        return None


def _kind_of(status: int) -> FailureKind:
    if status in (429, 503):
        return "engine_busy"
    if status in (401, 403, 404):
        return "misconfigured"
    return "engine_4xx" if 400 <= status < 500 else "engine_5xx"  # noqa: PLR2004
