"""One forward to one endpoint: connect, send, relay the answer under the model's deadlines.

Everything that happens before the engine's first event may be tried elsewhere; who decides that is
``gateway.inference``. Not here: bytes and sockets (``gateway.wire``).
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

from gateway.call import Call
from gateway.contract.edits import edit
from gateway.contract.envelope import Operation
from gateway.contract.errors import ContractError, Overdue
from gateway.engines import Engine, Engines
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
from routing.topology import Endpoint, UsageMode

ENGINE_PATHS: dict[Operation, bytes] = {
    "chat": b"/v1/chat/completions",
    "completions": b"/v1/completions",
    "embeddings": b"/v1/embeddings",
}
#: A request that is to be told its cost says so; its project may for all.
USAGE_COST, ASKED = b"x-tf-usage-cost", (b"true", b"1")
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
        *,
        fresh: bool = False,
    ) -> Failed | Ended:
        """``Failed``: nothing of an answer went out, and the exchange awaits another attempt.
        ``Ended``: the answer went out, whole or cut; the exchange is committed.
        ``fresh``: on a connection of its own, for one that was kept had died.
        """
        exchange = call.exchange
        assert exchange is not None
        load = self._engines.loads.get(endpoint.id)
        if load is None:
            return Failed("connect")  # it left the pool since it was chosen
        engine = self._engines.get(endpoint)
        on_sent(load, self._monotonic())
        load.in_flight += 1
        try:
            try:
                kept = None if fresh else engine.pool.acquire()
                upstream = kept or await engine.pool.connect(exchange.model.timeouts.connect_s)
            except ConnectFailed as failure:
                return Failed("connect_timeout" if failure.timeout else "connect")
            mode = engine.usage_mode(self._engines.signals.get(endpoint.id))
            body = self._body(call, plan, engine, mode)
            if len(body) > TURN_BYTES:
                await asyncio.sleep(0)  # the copy was this turn's work
            if call.stopped is not None:
                engine.pool.give_back(upstream)
                return Failed("connect")
            envelope = call.envelope
            assert envelope is not None
            stream = envelope.stream
            head = engine.pool.json_head(
                ENGINE_PATHS[envelope.operation],
                EVENT_STREAM if stream else JSON,
                call.request_id,
                call.trace.header,
                len(body),
            )
            # Running counts make a transcript needless; a whole answer is at hand anyway.
            transcribe = mode != "continuous" or not stream
            now_ms = self._unix_ms()
            number = exchange.dispatch(endpoint, now_ms, transcribe=transcribe)
            slot.dispatched(number, endpoint.id, now_ms)
            progress = _Progress(exchange, slot, number, self._monotonic, self._gaps, self._wheel)
            relay = call.relay = self._relay(call, progress, engine, lines)
            watch: Watch | Deadline
            if stream:
                watch = progress.watch = self._watch(call, relay)
            else:
                watch = self._wheel.add(exchange.model.timeouts.unary_s, partial(_late, call))
            relay.attach(upstream)
            upstream.send(head, body, relay)
            try:
                outcome = await relay.outcome
            finally:
                watch.cancel()
                progress.watch = call.relay = None  # no ring: what is over is freed at once
            if relay.attached:
                self._wheel.add(TAIL_S, relay.drop)
            if isinstance(outcome, Failed):
                now_ms = self._unix_ms()
                slot.attempt_failed(number, outcome.status, now_ms)
                exchange.fail_attempt(outcome.status, now_ms)
            return outcome
        finally:
            load.in_flight -= 1

    def _body(self, call: Call, plan: Plan, engine: Engine, mode: UsageMode) -> bytes:
        """The caller's bytes, less the declared edits."""
        envelope, exchange = call.envelope, call.exchange
        assert envelope is not None
        assert exchange is not None
        ask = mode if envelope.stream and mode in ("continuous", "final") else None
        return edit(
            call.request.body,
            envelope,
            upstream_model=exchange.model.upstream,
            ask_usage=ask,
            inject_cap=plan.inject_cap,
            cache_salt=self._salt(exchange.principal.tenant.id)
            if engine.endpoint.dialect == "vllm"
            else None,
        )

    def _relay(self, call: Call, progress: "_Progress", engine: Engine, lines: bytes) -> Relay:
        envelope, exchange = call.envelope, call.exchange
        assert envelope is not None
        assert exchange is not None
        model = exchange.model
        kept: UsageKept = "none"
        if envelope.include_usage:
            kept = "all" if envelope.continuous_usage else "final"
        relay = Relay(
            reply=call.reply,
            fold=exchange.fold,
            stream=envelope.stream,
            usage_kept=kept,
            names=(model.upstream, model.name) if model.upstream != model.name else None,
            lines=lines,
            listener=progress,
            release=engine.pool.give_back,
        )
        if exchange.principal.project.usage_cost or call.request.header(USAGE_COST) in ASKED:
            relay.cost_of = exchange.cost_told
        if envelope.tier is not None:
            relay.tier = exchange.tier.encode()
        return relay

    def _watch(self, call: Call, relay: Relay) -> Watch:
        """The deadlines of a stream; a whole answer has one."""
        assert call.exchange is not None
        timeouts = call.exchange.model.timeouts

        def on_late(committed: bool) -> None:  # noqa: FBT001 -- a callback of one fact
            if committed:
                call.stop("timeout", Overdue())
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


def _late(call: Call) -> None:
    call.stop("timeout", Overdue())


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
