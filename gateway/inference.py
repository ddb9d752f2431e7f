"""The life of a request, top to bottom: who asks, what for, may it, where, and what it cost.

    authenticate -> parse -> resolve the model -> admit (plan, claim a slot, reserve)
        -> attempt(s) -> commit -> relay -> counts in slot -> journal -> settle -> free the slot

Branches live here; bytes live in ``wire``, the law of states in ``exchange``, what is reserved in
``intake``, one attempt in ``forward``. Nothing is cancelled: a client that leaves stops the call, and every ending takes the
same path through ``_close``.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from gateway.admission import Admission
from gateway.authentication import Authentication
from gateway.call import Call, Stop, id_lines
from gateway.claims import Claims
from gateway.contract.envelope import (
    BOUNDS,
    Bounds,
    Envelope,
    Operation,
    parse,
    scan,
)
from gateway.contract.errors import (
    ContractError,
    NoCapacity,
    Overdue,
    UpstreamError,
)
from gateway.contract.everyday import read as read_everyday
from gateway.contract.ratelimits import rate_lines
from gateway.engines import Engine, Engines
from gateway.errors import normalise_engine_error
from gateway.exchange import Closing, Exchange
from gateway.forward import Forwarder
from gateway.health import Health
from gateway.intake import Admitted, Intake
from gateway.metering.board import Slot
from gateway.metering.desk import Desk
from gateway.recount import Counted, Recount
from gateway.snapshot import Snapshot
from gateway.telemetry.counters import Counters, ModelSeries, labels_of
from gateway.wire.relay import Ended, Failed
from quotas.estimate import Plan
from quotas.record import Outcome
from quotas.settlement import unbilled_ms
from quotas.unbilled import UnbilledEndings
from routing.attempts import RetryBudget, may_retry
from routing.decide import decide
from routing.errors import NoEndpoint
from routing.request import RoutingRequest
from routing.topology import Endpoint, Pool

#: A body above this is scanned in slices, with a turn of the loop between them.
SLICED_BYTES = 65_536
#: Attempts that are nobody's failure: a kept socket that had died, a 400 that taught how to ask.
FREE_RETRIES_MAX = 2
#: Of reserved throughput: whether the request was admitted on it.
RESERVED, SPILLED = b"reserved", b"spilled"
OUTCOME_OF: dict[str, Outcome] = {
    "first_event_timeout": "timeout",
    "connect_timeout": "timeout",
    "engine_4xx": "refused_by_engine",
}


class Inference:
    """One per data process. Clocks and chance are handed in."""

    def __init__(
        self,
        *,
        snapshot: Snapshot,
        authentication: Authentication,
        intake: Intake,
        engines: Engines,
        forwarder: Forwarder,
        admission: Admission,
        desk: Desk,
        claims: Claims,
        recount: Recount,
        unbilled: UnbilledEndings,
        counters: Counters,
        monotonic: Callable[[], float],
        unix_ms: Callable[[], int],
        chance: Callable[[], float],
        bounds: Bounds = BOUNDS,
    ) -> None:
        self._snapshot = snapshot
        self._authentication = authentication
        self._intake = intake
        self._engines = engines
        self._forwarder = forwarder
        self._admission = admission
        self._desk = desk
        self._claims = claims
        self._recount = recount
        self._unbilled = unbilled
        self._counting: set[asyncio.Future[None]] = set()
        self._counters = counters
        self._monotonic = monotonic
        self._unix_ms = unix_ms
        self._chance = chance
        self._bounds = bounds
        self._budgets: dict[int, RetryBudget] = defaultdict(RetryBudget)
        self._health = Health(engines, counters, monotonic)
        self._series: dict[str, ModelSeries] = {}
        self.running: dict[str, Call] = {}

    # -- the life ----------------------------------------------------------------------------

    async def serve(self, call: Call, operation: Operation) -> None:
        """Answer one request. Raises the error that the client is to get, if nothing went out."""
        request, request_id = call.request, call.request_id
        principal = self._authentication.principal_of(request)
        body = request.body
        envelope = read_everyday(body, operation) or await _read(body, operation, self._bounds)
        call.envelope = envelope
        model = self._authentication.model_for(principal, envelope.model)
        admitted = await self._intake.admit(call, principal, model)
        slot, intent, terms = admitted.slot, admitted.intent, admitted.terms
        exchange = call.exchange = Exchange(  # by place: each name is a search
            request_id,
            principal,
            model,
            operation,
            envelope.prompts,
            envelope.n,
            intent.prompt_estimate,
            intent.cap,
            admitted.charges,
            admitted.verdict.epoch,
            request.arrived_s,
            admitted.started_ms,
            call.draw.charges if call.draw is not None else (),
            terms.reserved,
            admitted.tier,
            terms.layout,
        )
        call.reply.on_gone = call.leave
        self.running[request_id] = call
        failure: Exception | None = None
        try:
            lines = _lines(request_id, envelope, admitted)
            failure = await self._attempts(call, exchange, slot, intent, lines)
        finally:
            del self.running[request_id]
            call.reply.forget()
            self._close(call, exchange, slot)
        if failure is not None:
            raise failure

    async def _attempts(
        self,
        call: Call,
        exchange: Exchange,
        slot: Slot,
        intent: Plan,
        lines: bytes,
    ) -> Exception | None:
        """Forward until an engine answers, or nobody can. Gives the error for the client, if any."""
        pool_id = exchange.model.pool_id
        pool, budget = self._snapshot.pools.get(pool_id), self._budgets[pool_id]
        budget.note_request(self._monotonic())
        tried: tuple[int, ...] = ()
        free_retries = 0
        last: Failed | None = None
        again: Endpoint | None = None
        fresh = False
        while True:
            if call.reply.gone:
                call.leave()
            stopped = call.stopped
            if stopped is not None:
                return self._end_stopped(call, exchange, stopped)
            try:
                endpoint = again or self._choose(pool, exchange, intent, tried)
            except NoEndpoint as nobody:
                if last is not None:
                    return self._give_up(call, exchange, last)
                return self._end(exchange, "engine_error", NoCapacity(nobody.retry_after_s))
            outcome = await self._forwarder.attempt(call, slot, endpoint, intent, lines, fresh)
            if isinstance(outcome, Ended):
                self._health.judge(exchange, endpoint, outcome)
                return self._after_commit(call, exchange, outcome)
            again, fresh = None, False
            if call.stopped is not None:
                continue  # it failed because we stopped it
            if free_retries < FREE_RETRIES_MAX and self._health.teaches(call, endpoint, outcome):
                free_retries += 1
                again, fresh = endpoint, outcome.reused
                continue
            self._health.judge(exchange, endpoint, outcome)
            last = outcome
            tried = (*tried, endpoint.id)
            retry = may_retry(outcome.kind, committed=call.reply.started, attempts_made=len(tried))
            if not retry or not budget.allow(self._monotonic()):
                return self._give_up(call, exchange, outcome)

    def _close(self, call: Call, exchange: Exchange, slot: Slot) -> None:
        """Every ending comes here once: counts in the slot, journal, settle, free."""
        # Not ended only where our own code failed midway: the engine's work is still recorded.
        if exchange.outcome is None:
            exchange.end("engine_error", 500, self._unix_ms())
        now_s = self._monotonic()
        closing = exchange.closing(now_s)
        record = closing.record
        if record is not None and record.source == "estimated":
            engine = self._recount.may_ask(call)
            if engine is not None:
                self._desk.note(slot, record)  # killed meanwhile, the estimate stands
                task = asyncio.ensure_future(self._close_later(call, engine, slot, now_s))
                self._counting.add(task)
                task.add_done_callback(self._counting.discard)
                return
        self._desk.close(slot, closing)
        self._conclude(call, exchange, closing)

    async def _close_later(self, call: Call, engine: Engine, slot: Slot, now_s: float) -> None:
        """The client has its answer; the engine is asked what it did not count."""
        exchange = call.exchange
        assert exchange is not None
        counted = Counted()
        try:
            await self._recount.ask(call, engine, counted)
        finally:
            closing = exchange.closing(now_s, counted.prompt, counted.completion)
            self._desk.file(slot, closing)
            self._conclude(call, exchange, closing)

    async def counted(self, timeout_s: float) -> None:
        """Wait for counts still asked for; what is late is recorded as estimated."""
        if self._counting:
            _, late = await asyncio.wait(self._counting, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _conclude(self, call: Call, exchange: Exchange, closing: Closing) -> None:
        """What is learned from an ending, and told of it."""
        record, intake = closing.record, self._intake
        intake.refusals.forget(exchange.charges)
        if call.draw is not None:
            intake.refusals.forget(exchange.shared)
            if record is None:
                self._admission.put_back(call.request_id, call.draw)
            else:
                self._admission.settle(call.request_id, call.draw, closing.shared)
        if not exchange.epoch:
            charged = () if record is None else closing.settlement.charged
            self._admission.ended(exchange.principal, exchange.request_id, charged)
        if record is None:
            self._claims.give_back(call, exchange.principal)
            return
        intake.learn(call, exchange.fold.prompt)
        name = exchange.model.name
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = ModelSeries(self._counters, name)
        series.count(record.outcome, record.usage, record.ttft_ms)
        if not any(record.billed.values()):
            self._unbilled.note(record.key_id, self._monotonic())
            self._counters.add("tf_unbilled_ms_total", labels_of(name), unbilled_ms(record))

    # -- choosing ------------------------------------------------------------------------------

    def _choose(
        self, pool: Pool | None, exchange: Exchange, intent: Plan, tried: tuple[int, ...]
    ) -> Endpoint:
        if pool is None:
            raise NoEndpoint(1, {})
        request = RoutingRequest(  # by place: each name is a search
            exchange.model.upstream,
            pool,
            intent.prompt_estimate,
            tried,
            _longest(exchange, intent),
            exchange.reserved,
        )
        engines = self._engines
        now_s = self._monotonic()
        return decide(request, engines.signals, engines.loads, now_s, self._chance).endpoint

    # -- endings -------------------------------------------------------------------------------

    def _after_commit(self, call: Call, exchange: Exchange, ended: Ended) -> Exception | None:
        """The answer went out, whole or cut; only a whole answer that broke still needs an error."""
        outcome: Outcome = "ok" if ended.ending == "finished" else ended.ending
        error: Exception | None = None
        if not call.reply.started and not call.reply.gone:
            error = call.stopped[1] if call.stopped else UpstreamError()
        return self._end(exchange, outcome, error, 200 if call.reply.started else 0)

    def _end_stopped(
        self, call: Call, exchange: Exchange, stopped: tuple[Stop, ContractError | None]
    ) -> Exception | None:
        ending, error = stopped
        return self._end(exchange, ending, error, 200 if call.reply.started else 0)

    def _give_up(self, call: Call, exchange: Exchange, failed: Failed) -> Exception | None:
        """The last failure becomes the client's error, in the contract's words."""
        error: Exception
        model = exchange.model
        if failed.status:
            error = normalise_engine_error(failed.status, failed.body, model.upstream, model.name)
            if isinstance(error, NoCapacity) and failed.retry_after_s is not None:
                error = NoCapacity(failed.retry_after_s)
        elif failed.kind in ("first_event_timeout", "connect_timeout"):
            error = Overdue()
        else:
            error = UpstreamError()
        outcome = OUTCOME_OF.get(failed.kind, "engine_error")
        return self._end(exchange, outcome, error, 200 if call.reply.started else 0)

    def _end(
        self, exchange: Exchange, outcome: Outcome, error: Exception | None, status: int = 0
    ) -> Exception | None:
        if not status and isinstance(error, ContractError):
            status = error.status
        exchange.end(outcome, status, self._unix_ms())
        return error


def _longest(exchange: Exchange, intent: Plan) -> int:
    """Tokens of the longest sequence, as far as it can be told: a cap of ours bends to the context."""
    cap = intent.cap if intent.inject_cap is None else 0
    return intent.prompt_estimate // exchange.prompts + cap


def _lines(request_id: str, envelope: Envelope, admitted: Admitted) -> bytes:
    """What the head of every answer says of its request."""
    terms = admitted.terms
    lines = id_lines(request_id) + rate_lines(terms.families, admitted.verdict.levels)
    if envelope.dropped:
        lines += b"x-tf-dropped: %b\r\n" % ", ".join(envelope.dropped).encode()
    if admitted.sold:
        lines += b"x-tf-throughput: %b\r\n" % (RESERVED if terms.reserved else SPILLED)
    return lines


async def _read(body: bytes, operation: Operation, bounds: Bounds) -> Envelope:
    """The envelope; a large body is scanned with a turn of the loop every 64 kB."""
    if len(body) <= SLICED_BYTES:
        return parse(body, operation, None, bounds)
    scanned = scan(body)
    for _ in scanned:
        await asyncio.sleep(0)
    return parse(body, operation, scanned, bounds)
