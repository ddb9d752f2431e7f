"""One forward to one endpoint: connect, send, relay the answer under the model's deadlines.

Everything that happens before the engine's first event may be tried elsewhere; who decides that is
``gateway.inference``. Not here: bytes and sockets (``gateway.wire``).
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

from gateway.call import Call
from gateway.contract.edits import edit
from gateway.contract.envelope import Operation
from gateway.contract.errors import ContractError
from gateway.engines import Engines
from gateway.errors import normalise_engine_error
from gateway.exchange import Exchange
from gateway.metering.board import Slot
from gateway.telemetry.counters import BUCKETS_S, Counters, Histogram
from gateway.wire.deadlines import Deadline, Wheel
from gateway.wire.dial import ConnectFailed
from gateway.wire.relay import EVENT_STREAM, JSON, Ended, Failed, Relay, UsageKept
from gateway.wire.watch import Watch
from quotas.estimate import Plan
from routing.breaker import on_sent
from routing.topology import Endpoint

ENGINE_PATHS: dict[Operation, bytes] = {
    "chat": b"/v1/chat/completions",
    "completions": b"/v1/completions",
    "embeddings": b"/v1/embeddings",
}
#: A request that is to be told its cost says so; its project may for all.
USAGE_COST, ASKED = b"x-tf-usage-cost", (b"true", b"1")
#: Ways to be told of counts that a stream is asked for.
ASKABLE: tuple[Literal["continuous", "final"], ...] = ("continuous", "final")
#: [DONE] came; the end of the response must follow, or the connection is not kept.
TAIL_S = 1.0
#: Making a body beyond this is a turn of the loop by itself (8 MiB: milliseconds).
TURN_BYTES = 262_144


class Forwarder:
    """One per data process. Clocks are handed in: ``monotonic`` in seconds, ``unix_ms``."""

    def __init__(
        self,
        *,
        engines: Engines,
        counters: Counters,
        wheel: Wheel,
        silence_s: float,
        salt: Callable[[int], str],
        monotonic: Callable[[], float],
        unix_ms: Callable[[], int],
    ) -> None:
        self._engines = engines
        self._wheel = wheel
        self._silence_s = silence_s
        self._salt = salt
        self._monotonic = monotonic
        self._unix_ms = unix_ms
        self._counters = counters
        self._gaps = counters.histogram("tf_inter_chunk_gap_seconds")

    async def attempt(
        self,
        call: Call,
        slot: Slot,
        endpoint: Endpoint,
        plan: Plan,
        lines: bytes,
        fresh: bool = False,  # noqa: FBT001, FBT002 -- by place: each name is a search
    ) -> Failed | Ended:
        """``Failed``: nothing of an answer went out, and the exchange awaits another attempt.
        ``Ended``: the answer went out, whole or cut; the exchange is committed.
        ``fresh``: on a connection of its own, for one that was kept had died.

        One straight line: every request walks it, and a step of its own costs it a call.
        """
        exchange, envelope = call.exchange, call.envelope
        assert exchange is not None
        assert envelope is not None
        engines, model = self._engines, exchange.model
        load = engines.loads.get(endpoint.id)
        if load is None:
            return Failed("connect")  # it left the pool since it was chosen
        engine = engines.get(endpoint)
        pool = engine.pool
        on_sent(load, self._monotonic())
        load.in_flight += 1
        try:
            upstream = None if fresh else pool.acquire()
            if upstream is None:
                try:
                    upstream = await pool.connect(model.timeouts.connect_s)
                except ConnectFailed as failure:
                    return Failed("connect_timeout" if failure.timeout else "connect")
            stream = envelope.stream
            # A whole answer has its counts, and is at hand to be counted where it has none.
            mode = engine.usage_mode(engines.signals.get(endpoint.id)) if stream else "none"
            # The caller's bytes, less the declared edits.
            body = edit(
                call.request.body,
                envelope,
                model.upstream,
                mode if mode in ASKABLE else None,
                plan.inject_cap,
                self._salt(exchange.principal.tenant.id) if endpoint.dialect == "vllm" else None,
            )
            if len(body) > TURN_BYTES:
                await asyncio.sleep(0)  # the copy was this turn's work
            if call.stopped is not None:
                pool.give_back(upstream)
                return Failed("connect")
            head = pool.json_head(
                ENGINE_PATHS[envelope.operation],
                EVENT_STREAM if stream else JSON,
                call.request_id,
                call.trace.header,
                len(body),
            )
            now_ms, wheel = self._unix_ms(), self._wheel
            # Running counts make a transcript needless.
            number = exchange.dispatch(endpoint, now_ms, mode != "continuous")
            slot.dispatched(number, endpoint.id, now_ms)
            progress = _Progress(exchange, slot, number, self._monotonic, self._gaps, wheel)
            kept: UsageKept = "none"
            if envelope.include_usage:
                kept = "all" if envelope.continuous_usage else "final"
            relay = call.relay = Relay(
                call.reply,
                exchange.fold,
                stream,
                kept,
                (model.upstream, model.name) if model.upstream != model.name else None,
                lines,
                progress,
                pool.give_back,
            )
            if exchange.principal.project.usage_cost or call.request.header(USAGE_COST) in ASKED:
                relay.cost_of = exchange.cost_told
            if envelope.tier is not None:
                relay.tier = exchange.tier.encode()
            watch: Watch | Deadline
            if stream:
                watch = progress.watch = self._watch(call, relay)
            else:
                watch = wheel.add(model.timeouts.unary_s, call.expire)
            relay.attach(upstream)
            upstream.send(head, body, relay)
            try:
                outcome = await relay.outcome
            finally:
                watch.cancel()
                progress.watch = call.relay = None  # no ring: what is over is freed at once
            if relay.attached:
                wheel.add(TAIL_S, relay.drop)
            if isinstance(outcome, Failed):
                now_ms = self._unix_ms()
                slot.attempt_failed(number, outcome.status, now_ms)
                exchange.fail_attempt(outcome.status, now_ms)
            return outcome
        finally:
            load.in_flight -= 1

    def _watch(self, call: Call, relay: Relay) -> Watch:
        """The deadlines of a stream; a whole answer has one."""
        assert call.exchange is not None
        timeouts = call.exchange.model.timeouts

        def on_late(committed: bool) -> None:  # noqa: FBT001 -- a callback of one fact
            if committed:
                call.expire()
            else:
                relay.fail("first_event_timeout")

        return Watch(
            self._wheel,
            first_event_s=timeouts.first_event_s,
            gap_s=timeouts.gap_s,
            total_s=timeouts.stream_s,
            silence_s=self._silence_s,
            on_late=on_late,
            on_silence=relay.ping,
        )


class _Progress:
    """What a relay tells of one attempt, on its way into exchange, slot and watch.

    One object with slots and not closures: it is touched at every chunk of every stream, and each
    cell of a closure is memory of its own that a thousand streams do not keep warm.
    """

    __slots__ = (
        "_exchange",
        "_fold",
        "_gaps",
        "_last_s",
        "_monotonic",
        "_number",
        "_slot",
        "_wheel",
        "watch",
    )

    def __init__(
        self,
        exchange: Exchange,
        slot: Slot,
        number: int,
        monotonic: Callable[[], float],
        gaps: Histogram,
        wheel: Wheel,
    ) -> None:
        self._exchange = exchange
        self._fold = exchange.fold
        self._slot = slot
        self._number = number
        self._monotonic = monotonic
        self._gaps = gaps
        self._wheel = wheel
        self._last_s = 0.0
        self.watch: Watch | None = None

    def on_commit(self) -> None:
        self._exchange.commit(self._monotonic())

    def on_counts(self) -> None:
        fold = self._fold
        if fold.prompt is not None:
            self._slot.progress(self._number, fold.prompt, fold.completion or 0)

    def error_of(self, status: int, body: bytes) -> ContractError:
        model = self._exchange.model
        return normalise_engine_error(status, body, model.upstream, model.name)

    def on_steady(self) -> None:
        """Runs before the bytes are handed to the client's socket; a token went to it before."""
        fold = self._fold
        self._slot.progress(self._number, fold.prompt, fold.completion)  # type: ignore[arg-type]  # it has both
        now_s = self._monotonic()
        gap_s, self._last_s = now_s - self._last_s, now_s
        gaps, watch = self._gaps, self.watch
        gaps.counts[bisect_left(BUCKETS_S, gap_s)] += 1  # gaps.observe, without the call
        gaps.sum_s += gap_s
        if watch is not None:
            watch.last_chunk = self._wheel.now

    def on_chunk(self, events: int) -> None:
        """Runs after bytes of the answer were handed to the client's socket."""
        if not events:
            return  # comments: the engine lives, and makes nothing
        now_s = self._monotonic()
        if self._last_s:
            self._gaps.observe(now_s - self._last_s)
        self._last_s = now_s
        exchange, fold = self._exchange, self._fold
        exchange.frames += events
        if fold.completion or fold.completion is None:
            exchange.delivered = True
        if self.watch is not None:
            self.watch.chunk()
