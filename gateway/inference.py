"""The life of a request, top to bottom: who asks, what for, may it, where, and what it cost.

    authenticate -> parse -> resolve the model -> plan -> claim a slot -> reserve
        -> attempt(s) -> commit -> relay -> counts in slot -> journal -> settle -> free the slot

Branches live here; bytes live in ``wire``, the law of states in ``exchange``, one attempt in
``forward``. Nothing is cancelled: a client that leaves stops the call, and every ending takes the
same path through ``_close``.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import msgspec

from gateway import identity
from gateway.admission import Admission, NotAsked
from gateway.call import Call, Stop, id_lines
from gateway.ceilings import Ceilings
from gateway.claims import Claims
from gateway.contract.envelope import (
    BOUNDS,
    OPERATIONS,
    Bounds,
    Envelope,
    Operation,
    parse,
    scan,
)
from gateway.contract.errors import (
    ContractError,
    InvalidBody,
    InvalidKey,
    LimitExceeded,
    ModelNotFound,
    ModelNotPriced,
    NoCapacity,
    Overdue,
    StoreAway,
    UpstreamError,
)
from gateway.contract.everyday import read as read_everyday
from gateway.contract.ratelimits import Headers, families_of, rate_headers, rate_lines
from gateway.contract.tiers import DEFAULT, FIELD, tier_of
from gateway.engines import Engine, Engines
from gateway.errors import normalise_engine_error, refusal_of
from gateway.exchange import Closing, Exchange
from gateway.forward import Forwarder
from gateway.health import Health
from gateway.metering.board import Slot
from gateway.metering.desk import Desk
from gateway.metering.slots import RESERVED_BIT, ids_of
from gateway.recount import Counted, Recount
from gateway.refusals import Refusal, Refusals, Refused, used_of
from gateway.snapshot import ModelDoc, Principal, Snapshot
from gateway.telemetry.counters import Counters, ModelSeries, labels_of
from gateway.terms import Calendars, Terms, scope_of, terms_of
from gateway.tokenizer import Tokenizer
from gateway.wire.relay import Ended, Failed
from gateway.wire.server import Request
from quotas.errors import StoreUnavailable
from quotas.estimate import Plan, PromptEstimator, plan
from quotas.leases import Draw
from quotas.limits import Charge, Level, Verdict
from quotas.record import Outcome, UsageRecord
from quotas.settlement import unbilled_ms
from quotas.unbilled import UnbilledEndings
from routing.attempts import RetryBudget, may_retry
from routing.decide import decide
from routing.errors import NoEndpoint
from routing.request import RoutingRequest
from routing.topology import Endpoint, Pool

#: A body above this is scanned in slices, with a turn of the loop between them.
SLICED_BYTES = 65_536
#: An unsettled reservation outlives the longest stream by a day: time to find it after a crash.
RESERVATION_GRACE_S = 86_400
#: Attempts that are nobody's failure: a kept socket that had died, a 400 that taught how to ask.
FREE_RETRIES_MAX = 2
#: Operations as slots name them.
_CODE_OF = {name: code for code, name in enumerate(OPERATIONS)}
#: Of reserved throughput: whether the request was admitted on it.
IDEMPOTENCY_KEY = b"idempotency-key"
RESERVED, SPILLED = b"reserved", b"spilled"
OUTCOME_OF: dict[str, Outcome] = {
    "first_event_timeout": "timeout",
    "connect_timeout": "timeout",
    "engine_4xx": "refused_by_engine",
}


class Seen(msgspec.Struct, frozen=True):
    """What a head's credential says, and whose it is in one generation of the snapshot."""

    kid: str | None
    digest: bytes
    generation: object
    principal: Principal | None
    expires_ms: int | None


class _Spilled(Exception):
    """Reserved throughput has no room, and what is above it is admitted as everybody's is."""


class Inference:
    """One per data process. Clocks and chance are handed in."""

    def __init__(
        self,
        *,
        snapshot: Snapshot,
        engines: Engines,
        forwarder: Forwarder,
        admission: Admission,
        desk: Desk,
        recount: Recount,
        unbilled: UnbilledEndings,
        counters: Counters,
        pepper: bytes,
        monotonic: Callable[[], float],
        unix_ms: Callable[[], int],
        chance: Callable[[], float],
        ceilings: Ceilings,
        bounds: Bounds = BOUNDS,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._engines = engines
        self._forwarder = forwarder
        self._admission = admission
        self._desk = desk
        self._recount = recount
        self._unbilled = unbilled
        self._counting: set[asyncio.Future[None]] = set()
        self._counters = counters
        self._pepper = pepper
        self._monotonic = monotonic
        self._unix_ms = unix_ms
        self._chance = chance
        self._ceilings = ceilings
        self._bounds = bounds
        self._tokenizer = tokenizer
        self._calendars = Calendars()
        self.refusals = Refusals()
        self._estimators: dict[int, PromptEstimator] = defaultdict(PromptEstimator)
        self._budgets: dict[int, RetryBudget] = defaultdict(RetryBudget)
        self._claims = Claims(admission, pepper)
        self._health = Health(engines, counters, monotonic)
        self._series: dict[str, ModelSeries] = {}
        self.running: dict[str, Call] = {}

    # -- the life ----------------------------------------------------------------------------

    async def serve(self, call: Call, operation: Operation) -> None:
        """Answer one request. Raises the error that the client is to get, if nothing went out."""
        principal = self.authenticate(call.request)
        body = call.request.body
        envelope = read_everyday(body, operation) or await _read(body, operation, self._bounds)
        call.envelope = envelope
        model = self._resolve(principal, envelope.model)
        self._refuse_unbilled(principal)
        tier = DEFAULT if envelope.tier is None else self._tier(principal, model, envelope.tier)
        terms = self._terms(principal, model, envelope.user, tier)
        if self._tokenizer is not None:
            envelope.text_bytes = await self._tokenizer.measure(
                call.request.body, envelope.text_bytes
            )
        started_ms = self._unix_ms()
        sold = terms.on_throughput(started_ms)
        everybodys, terms = terms, sold or terms
        intent = self._plan(
            terms,
            envelope,
            call,
            await self._ceiling(terms, envelope, call) if terms.spends else None,
        )
        if call.request.header(IDEMPOTENCY_KEY) is not None:
            await self._claims.take(call, principal, _ttl_s(model))
        try:
            try:
                slot = self._desk.claim()
                verdict, charges = await self._reserve(call, slot, terms, intent, started_ms)
            except _Spilled:
                self._give_back(call)
                terms = everybodys
                most = await self._ceiling(terms, envelope, call) if terms.spends else None
                intent = self._plan(terms, envelope, call, most)
                slot = self._desk.claim()
                verdict, charges = await self._reserve(call, slot, terms, intent, started_ms)
        except BaseException:
            self._put_back(call, principal)  # no engine saw it
            raise
        call.exchange = Exchange(
            request_id=call.request_id,
            principal=principal,
            model=model,
            operation=operation,
            prompts=envelope.prompts,
            n=envelope.n,
            prompt_estimate=intent.prompt_estimate,
            cap=intent.cap,
            charges=charges,
            epoch=verdict.epoch,
            arrived_s=call.request.arrived_s,
            started_ms=started_ms,
            shared=call.draw.charges if call.draw is not None else (),
            reserved=terms.reserved,
            tier=tier,
        )
        call.reply.on_gone = lambda: call.stop("client_abort")
        self.running[call.request_id] = call
        failure: Exception | None = None
        try:
            lines = id_lines(call.request_id) + rate_lines(terms.families, verdict.levels)
            if envelope.dropped:
                lines += b"x-tf-dropped: %b\r\n" % ", ".join(envelope.dropped).encode()
            if sold is not None:
                lines += b"x-tf-throughput: %b\r\n" % (RESERVED if terms is sold else SPILLED)
            failure = await self._attempts(call, call.exchange, slot, intent, lines)
        finally:
            del self.running[call.request_id]
            call.reply.forget()
            self._close(call, call.exchange, slot)
        if failure is not None:
            raise failure

    def authenticate(self, request: Request) -> Principal:
        """The caller. The same error and the same work for unknown, wrong, revoked and expired."""
        head = request.head
        seen: Seen | None = head.memo  # type: ignore[assignment]  # as set here
        if seen is None or seen.generation is not self._snapshot.generation:
            seen = head.memo = self._look_up(request, seen)
        if seen.principal is None:
            raise InvalidKey
        if seen.expires_ms is not None and seen.expires_ms <= self._unix_ms():
            raise InvalidKey
        return seen.principal

    def _look_up(self, request: Request, seen: Seen | None) -> Seen:
        """Whose key a head carries. What its bytes say is found once; whose that is, whenever anything
        has changed.
        """
        if seen is None:
            token = _token(request)
            kid, digest = identity.parse(token), identity.digest(self._pepper, token)
        else:
            kid, digest = seen.kid, seen.digest
        snapshot = self._snapshot
        found = snapshot.find_secret(kid) if kid is not None else None
        right = identity.matches(digest, found[1].digest if found else bytes(len(digest)))
        principal = snapshot.principal(found[0].id) if right and found is not None else None
        expires_s = found[1].expires_s if found is not None else None
        expires_ms = None if expires_s is None else expires_s * 1000
        return Seen(kid, digest, snapshot.generation, principal, expires_ms)

    def may_use(self, principal: Principal, model: ModelDoc) -> bool:
        return principal.key.models is None or model.name in principal.key.models

    def _resolve(self, principal: Principal, name: str) -> ModelDoc:
        """A model the key may not use answers as one that does not exist; one without a price is free,
        but not to who pays.
        """
        model = self._snapshot.model_by_name.get(name)
        if model is None or not self.may_use(principal, model):
            raise ModelNotFound(name)
        if principal.tenant.pays and principal.price_of(model) is None:
            raise ModelNotPriced(name)  # free work for who pays would be nobody's
        return model

    def _tier(self, principal: Principal, model: ModelDoc, asked: str | None) -> str:
        """The service tier; refused where this tenant has no price for it."""
        tier = tier_of(asked)
        if tier != DEFAULT and principal.price_of(model, tier) is None:
            raise InvalidBody(
                f"'{FIELD}' {tier} is not offered for the model {model.name}; leave it out, or use"
                " auto or default.",
                FIELD,
            )
        return tier

    def _put_back(self, call: Call, principal: Principal) -> None:
        """It was not admitted: what it drew goes back, and its key may come again."""
        self._give_back(call)
        self._claims.give_back(call, principal)

    def _give_back(self, call: Call) -> None:
        """What it drew from leases, once."""
        draw, call.draw = call.draw, None
        if draw is not None:
            self._admission.put_back(call.request_id, draw)

    def _refuse_unbilled(self, principal: Principal) -> None:
        """Endings that bill nothing are free work, so they are bounded too."""
        wait_ms = self._unbilled.wait_ms(principal.key.id, self._monotonic())
        if wait_ms:
            name = f"key {principal.key.path}"
            allowed = self._unbilled.per_minute
            raise LimitExceeded(name, "unbilled endings", allowed, allowed, 1, wait_ms)

    def _plan(self, terms: Terms, envelope: Envelope, call: Call, most: int | None) -> Plan:
        """What the request reserves; refused here only when it could never fit."""
        estimate = self._estimators[terms.model.id].estimate(envelope.text_bytes)
        given = envelope.default_cap if envelope.cap is None else envelope.cap
        if given is None:
            intent = self._plan_cap(terms, envelope, call, estimate, most)
        else:
            intent = Plan(estimate, given, envelope.prompts * envelope.n * given, None, most)
        terms.check_fits(intent)
        if envelope.min_tokens > intent.cap:
            raise InvalidBody(
                f"'min_tokens' must be at most {intent.cap}, the tokens this answer may have.",
                "min_tokens",
            )
        return intent

    def _plan_cap(
        self, terms: Terms, envelope: Envelope, call: Call, estimate: int, most: int | None
    ) -> Plan:
        """For who said no cap: the most that model, context and limits can grant."""
        model = terms.model
        output = terms.tightest_output
        return plan(
            prompt_estimate=estimate,
            prompt_bytes=len(call.request.body),
            prompt_ceiling=most,
            sequences=envelope.prompts * envelope.n,
            explicit_cap=None,
            default_cap=None,
            model_cap=model.max_output_tokens,
            context_tokens=self._context_of(model),
            tightest_tokens=terms.tightest_tokens.capacity if terms.tightest_tokens else None,
            tightest_output=terms.affordable_output(most, output.capacity if output else None),
        )

    def _context_of(self, model: ModelDoc) -> int | None:
        pool = self._snapshot.pools.get(model.pool_id)
        return model.context_tokens or self._engines.context_of(model, pool)

    async def _ceiling(self, terms: Terms, envelope: Envelope, call: Call) -> int | None:
        """Prompt tokens that it cannot exceed: asked for where money is limited alone."""
        body = call.request.body
        return await self._ceilings.of(terms, envelope, body, self._context_of(terms.model))

    async def _reserve(
        self, call: Call, slot: Slot, terms: Terms, intent: Plan, started_ms: int
    ) -> tuple[Verdict, tuple[Charge, ...]]:
        """One atomic step over every limit that applies; refused = nothing held."""
        envelope = call.envelope
        assert envelope is not None
        principal, model = terms.principal, terms.model
        amounts = (
            1,
            intent.prompt_estimate,
            intent.output,
            intent.reserve,
            1,
            terms.hold_micro(intent),
        )
        charges = terms.charges(amounts, started_ms)
        known = self.refusals.recall(charges, self._monotonic())
        if known is not None:
            self._desk.drop(slot)
            raise _Spilled if terms.spills else self._refusal(terms, known, started_ms)
        if terms.shared:
            await self._draw(
                call, slot, terms, terms.shared_charges(amounts, started_ms), started_ms
            )
        slot.reserving(
            bytes.fromhex(call.request_id),
            terms.slot_ids or _name_rows(terms),
            _CODE_OF[envelope.operation] | (RESERVED_BIT if terms.reserved else 0),
            envelope.n,
            envelope.prompts,
            intent.prompt_estimate,
            intent.cap,
            started_ms,
        )
        ttl_s = _ttl_s(model)
        try:
            verdict = await self._admission.reserve(principal, call.request_id, charges, ttl_s)
        except NotAsked:
            self._desk.drop(slot)
            raise StoreAway from None
        except StoreUnavailable:
            self._desk.give_up(slot, principal.tag, call.request_id)  # it may have been held
            raise StoreAway from None
        except BaseException:
            self._desk.give_up(slot, principal.tag, call.request_id)
            raise
        for index in verdict.shadowed:
            self._counters.add("tf_shadow_refusals_total", terms.labels[index])
        if not verdict.admitted:
            self._desk.drop(slot)
            refused = self.refusals.remember(charges, verdict, self._monotonic())
            if terms.spills:
                raise _Spilled
            headers = rate_headers(terms.families, verdict.levels)
            raise self._refusal(terms, refused, started_ms, headers)
        slot.reserved(verdict.epoch)
        return verdict, charges

    async def _draw(
        self, call: Call, slot: Slot, terms: Terms, charges: tuple[Charge, ...], started_ms: int
    ) -> None:
        """Limits that all tenants share come first: this process has leases of them."""
        known = self.refusals.recall(charges, self._monotonic())
        try:
            if known is None:
                drawn = await self._admission.draw(call.request_id, charges)
                if isinstance(drawn, Draw):
                    call.draw = drawn
                    for limit in drawn.shadowed:
                        labels = labels_of(scope_of(limit), limit.dimension)
                        self._counters.add("tf_shadow_refusals_total", labels)
                    return
                known = self.refusals.remember(charges, drawn, self._monotonic())
        except StoreUnavailable:
            self._desk.drop(slot)
            raise StoreAway from None
        except BaseException:
            self._desk.drop(slot)
            raise
        self._desk.drop(slot)
        raise self._refusal(terms, known, started_ms)

    async def _attempts(
        self,
        call: Call,
        exchange: Exchange,
        slot: Slot,
        intent: Plan,
        lines: bytes,
    ) -> Exception | None:
        """Forward until an engine answers, or nobody can. Gives the error for the client, if any."""
        pool = self._snapshot.pools.get(exchange.model.pool_id)
        budget = self._budgets[exchange.model.pool_id]
        budget.note_request(self._monotonic())
        tried: tuple[int, ...] = ()
        free_retries = 0
        last: Failed | None = None
        again: Endpoint | None = None
        fresh = False
        while True:
            if call.reply.gone:
                call.stop("client_abort")
            stopped = call.stopping()
            if stopped is not None:
                return self._end_stopped(call, exchange, stopped)
            try:
                endpoint = again or self._choose(pool, exchange, intent, tried)
            except NoEndpoint as nobody:
                if last is not None:
                    return self._give_up(call, exchange, last)
                return self._end(exchange, "engine_error", NoCapacity(nobody.retry_after_s))
            outcome = await self._forwarder.attempt(
                call, slot, endpoint, intent, lines, fresh=fresh
            )
            if isinstance(outcome, Ended):
                self._health.judge(exchange, endpoint, outcome)
                return self._after_commit(call, exchange, outcome)
            again, fresh = None, False
            if call.stopping() is not None:
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
        record = closing.record
        self.refusals.forget(exchange.charges)
        if call.draw is not None:
            self.refusals.forget(exchange.shared)
            if record is None:
                self._admission.put_back(call.request_id, call.draw)
            else:
                self._admission.settle(call.request_id, call.draw, closing.shared)
        if not exchange.epoch:
            charged = () if record is None else closing.settlement.charged
            self._admission.ended(exchange.principal, exchange.request_id, charged)
        self._learn(call, exchange)
        if record is None:
            self._claims.give_back(call, exchange.principal)
            return
        self._count(exchange.model, record)
        if not any(record.billed.values()):
            self._unbilled.note(record.key_id, self._monotonic())
            spent_ms = unbilled_ms(record)
            self._counters.add("tf_unbilled_ms_total", labels_of(exchange.model.name), spent_ms)

    # -- choosing ------------------------------------------------------------------------------

    def _choose(
        self, pool: Pool | None, exchange: Exchange, intent: Plan, tried: tuple[int, ...]
    ) -> Endpoint:
        if pool is None:
            raise NoEndpoint(1, {})
        request = RoutingRequest(
            model_upstream=exchange.model.upstream,
            pool=pool,
            tokens_estimate=intent.prompt_estimate,
            needs_context=_longest(exchange, intent),
            tried=tried,
            guaranteed=exchange.reserved,
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

    def _refusal(
        self, terms: Terms, refused: Refused, at_ms: int, headers: Headers | None = None
    ) -> Exception:
        """The binding limit, named; counted and kept to be explained."""
        limit = refused.limit
        self._counters.add("tf_refusals_total", labels_of(scope_of(limit), limit.dimension))
        used = used_of(limit, refused.remaining)
        self.refusals.note(
            terms.principal.key.id,
            Refusal(
                at_ms=at_ms,
                model=terms.model.name,
                scope=limit.scope_name,
                dimension=limit.dimension,
                window=limit.window,
                limit=limit.per_minute or limit.capacity,
                used=used,
                requested=refused.requested,
                retry_after_ms=refused.retry_after_ms,
                reason=refused.reason,
            ),
        )
        if headers is None:
            level = Level(refused.remaining, refused.reset_ms)
            headers = rate_headers(families_of((limit,)), (level,))
        return refusal_of(refused, used, terms.currency, tuple(headers))

    # -- what is learned and counted -----------------------------------------------------------

    def _terms(self, principal: Principal, model: ModelDoc, user: str | None, tier: str) -> Terms:
        """What limits this request; those of its end user where it names one."""
        terms = terms_of(principal, model, self._calendars, self._snapshot.platform, tier)
        if user and terms.has_users:
            return terms.for_user(identity.user_digest(self._pepper, user))
        return terms

    def _learn(self, call: Call, exchange: Exchange) -> None:
        prompt = exchange.fold.prompt
        if prompt is not None and call.envelope is not None:
            self._estimators[exchange.model.id].learn(call.envelope.text_bytes, prompt)

    def _count(self, model: ModelDoc, record: UsageRecord) -> None:
        series = self._series.get(model.name)
        if series is None:
            series = self._series[model.name] = ModelSeries(self._counters, model.name)
        series.count(record.outcome, record.usage, record.ttft_ms)


def _name_rows(terms: Terms) -> bytes:
    """What slots say of these terms' rows, from now on."""
    principal, price = terms.principal, terms.version
    ids = (principal.tenant.id, principal.project.id, principal.key.id, terms.model.id)
    terms.slot_ids = ids_of(*ids, price.id if price else 0)
    return terms.slot_ids


def _ttl_s(model: ModelDoc) -> int:
    """How long the store keeps what a request left there, should nobody end it."""
    return int(model.timeouts.stream_s) + RESERVATION_GRACE_S


def _longest(exchange: Exchange, intent: Plan) -> int:
    """Tokens of the longest sequence, as far as it can be told: a cap of ours bends to the context."""
    cap = intent.cap if intent.inject_cap is None else 0
    return intent.prompt_estimate // exchange.prompts + cap


async def _read(body: bytes, operation: Operation, bounds: Bounds) -> Envelope:
    """The envelope; a large body is scanned with a turn of the loop every 64 kB."""
    if len(body) <= SLICED_BYTES:
        return parse(body, operation, None, bounds)
    scanned = scan(body)
    for _ in scanned:
        await asyncio.sleep(0)
    return parse(body, operation, scanned, bounds)


def _token(request: Request) -> str:
    """The credential as sent: ``Authorization: Bearer`` or ``x-api-key``; "" when there is none."""
    bearer = request.header(b"authorization")
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip().decode("latin-1")
    return (request.header(b"x-api-key") or b"").strip().decode("latin-1")
