"""From who asks and for what to a reservation: terms, plan, one atomic step; or the refusal, with
nothing held.

    terms -> plan -> claim a slot -> draw on shared limits -> reserve

Also what endings teach it: how many tokens a text will be. Not here: asking the store, and its outages
(``gateway.admission``); levels (``quotas.store``); what happens then (``gateway.inference``).
"""

from collections import defaultdict
from collections.abc import Callable

import msgspec

from gateway import identity
from gateway.admission import Admission, NotAsked
from gateway.call import Call
from gateway.ceilings import Ceilings
from gateway.claims import Claims
from gateway.contract.envelope import OPERATIONS, Envelope
from gateway.contract.errors import InvalidBody, LimitExceeded, StoreAway
from gateway.contract.ratelimits import Headers, families_of, rate_headers
from gateway.contract.tiers import DEFAULT, FIELD, tier_of
from gateway.engines import Engines
from gateway.errors import refusal_of
from gateway.metering.board import Slot
from gateway.metering.desk import Desk
from gateway.metering.slots import RESERVED_BIT, ids_of
from gateway.refusals import Refusal, Refusals, Refused, used_of
from gateway.snapshot import ModelDoc, Principal, Snapshot
from gateway.telemetry.counters import Counters, labels_of
from gateway.terms import Calendars, Terms, scope_of, terms_of
from gateway.tokenizer import Tokenizer
from quotas.errors import StoreUnavailable
from quotas.estimate import Plan, PromptEstimator, plan
from quotas.leases import Draw
from quotas.limits import Charge, Level, Verdict
from quotas.unbilled import UnbilledEndings

IDEMPOTENCY_KEY = b"idempotency-key"
#: An unsettled reservation outlives the longest stream by a day: time to find it after a crash.
RESERVATION_GRACE_S = 86_400
#: Operations as slots name them.
_CODE_OF = {name: code for code, name in enumerate(OPERATIONS)}


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request that holds a slot and a reservation. ``sold``: its tenant has reserved throughput of the
    model; ``terms.reserved``: it was admitted on it. Times are Unix ms.
    """

    slot: Slot
    terms: Terms
    intent: Plan
    verdict: Verdict
    charges: tuple[Charge, ...]
    tier: str
    sold: bool
    started_ms: int


class _Spilled(Exception):
    """Reserved throughput has no room, and what is above it is admitted as everybody's is."""


class Intake:
    """One per data process. ``refusals``: what was refused here."""

    def __init__(
        self,
        *,
        snapshot: Snapshot,
        engines: Engines,
        admission: Admission,
        desk: Desk,
        unbilled: UnbilledEndings,
        counters: Counters,
        ceilings: Ceilings,
        claims: Claims,
        pepper: bytes,
        monotonic: Callable[[], float],
        unix_ms: Callable[[], int],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._engines = engines
        self._admission = admission
        self._desk = desk
        self._unbilled = unbilled
        self._counters = counters
        self._ceilings = ceilings
        self._claims = claims
        self._pepper = pepper
        self._monotonic = monotonic
        self._unix_ms = unix_ms
        self._tokenizer = tokenizer
        self._calendars = Calendars()
        self._estimators: dict[int, PromptEstimator] = defaultdict(PromptEstimator)
        self.refusals = Refusals()

    async def admit(self, call: Call, principal: Principal, model: ModelDoc) -> Admitted:
        """Admit a request, or raise what its client is told. On reserved throughput where its tenant has
        any of the model; what is above that, as everybody's where it spills.
        """
        envelope = call.envelope
        assert envelope is not None
        wait_ms = self._unbilled.wait_ms(principal.key.id, self._monotonic())
        if wait_ms:
            raise self._too_many_unbilled(principal, wait_ms)
        tier = DEFAULT if envelope.tier is None else self._tier(principal, model, envelope.tier)
        terms = terms_of(principal, model, self._calendars, self._snapshot.platform, tier)
        if envelope.user and terms.has_users:
            terms = terms.for_user(identity.user_digest(self._pepper, envelope.user))
        if self._tokenizer is not None:
            envelope.text_bytes = await self._tokenizer.measure(
                call.request.body, envelope.text_bytes
            )
        started_ms = self._unix_ms()
        sold = terms.on_throughput(started_ms)
        wanted = sold or terms
        most = await self._ceiling(wanted, envelope, call) if wanted.spends else None
        intent = self._plan(wanted, envelope, call, most)
        if call.request.header(IDEMPOTENCY_KEY) is not None:
            await self._claims.take(call, principal, _ttl_s(model))
        try:
            try:
                return await self._reserve(call, wanted, sold, intent, tier, started_ms)
            except _Spilled:
                self.give_back(call)
                most = await self._ceiling(terms, envelope, call) if terms.spends else None
                intent = self._plan(terms, envelope, call, most)
                return await self._reserve(call, terms, sold, intent, tier, started_ms)
        except BaseException:  # whatever it was, cancellation too: no engine saw it
            self.give_back(call)
            self._claims.give_back(call, principal)
            raise

    def give_back(self, call: Call) -> None:
        """What it drew from leases, once."""
        draw, call.draw = call.draw, None
        if draw is not None:
            self._admission.put_back(call.request_id, draw)

    def learn(self, call: Call, prompt: int | None) -> None:
        """The engine counted so many tokens for the call's text."""
        envelope, exchange = call.envelope, call.exchange
        if prompt is not None and envelope is not None and exchange is not None:
            self._estimators[exchange.model.id].learn(envelope.text_bytes, prompt)

    def _too_many_unbilled(self, principal: Principal, wait_ms: int) -> Exception:
        """Endings that bill nothing are free work, so they are bounded too."""
        allowed = self._unbilled.per_minute
        name = f"key {principal.key.path}"
        return LimitExceeded(name, "unbilled endings", allowed, allowed, 1, wait_ms)

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

    # -- what it reserves ----------------------------------------------------------------------

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
        self,
        call: Call,
        terms: Terms,
        sold: Terms | None,
        intent: Plan,
        tier: str,
        started_ms: int,
    ) -> Admitted:
        """A slot, and one atomic step over every limit that applies; refused = nothing held."""
        envelope, request_id = call.envelope, call.request_id
        assert envelope is not None
        slot = self._desk.claim()
        principal = terms.principal
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
            bytes.fromhex(request_id),
            terms.slot_ids or _name_rows(terms),
            _CODE_OF[envelope.operation] | (RESERVED_BIT if terms.reserved else 0),
            envelope.n,
            envelope.prompts,
            intent.prompt_estimate,
            intent.cap,
            started_ms,
        )
        ttl_s = _ttl_s(terms.model)
        try:
            verdict = await self._admission.reserve(principal, request_id, charges, ttl_s)
        except NotAsked:
            self._desk.drop(slot)
            raise StoreAway from None
        except StoreUnavailable:
            self._desk.give_up(slot, principal.tag, request_id)  # it may have been held
            raise StoreAway from None
        except BaseException:
            self._desk.give_up(slot, principal.tag, request_id)
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
        return Admitted(slot, terms, intent, verdict, charges, tier, sold is not None, started_ms)

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


def _name_rows(terms: Terms) -> bytes:
    """What slots say of these terms' rows, from now on."""
    principal, price = terms.principal, terms.version
    ids = (principal.tenant.id, principal.project.id, principal.key.id, terms.model.id)
    terms.slot_ids = ids_of(*ids, price.id if price else 0)
    return terms.slot_ids


def _ttl_s(model: ModelDoc) -> int:
    """How long the store keeps what a request left there, should nobody end it."""
    return int(model.timeouts.stream_s) + RESERVATION_GRACE_S
