"""The state machine of one request: what may follow what, and "one record, one settle".

A table in h11's manner: states down, events across; code only walks it. Whatever ends a request
comes through ``end``, the first ending wins, and only then are record and settlement made. Pure:
times are arguments. Not here: sockets (``wire.relay``), the order of steps (``inference``).

    admitted --dispatch--> dispatched --commit--> committed --end--> ended
       |  ^                    |                                       ^
       |  +----fail_attempt----+                                       |
       +--------------------------------end---------------------------+
"""

from collections.abc import Callable
from enum import StrEnum  # hashed by C, not by Python

import msgspec

from gateway.contract.transcript import Transcript
from gateway.contract.usage import UsageFold
from gateway.snapshot import ModelDoc, Principal
from quotas.charges import Layout, settled_as, true_charges
from quotas.limits import Charge
from quotas.money import decimal, micro
from quotas.ports import Settlement
from quotas.pricing import DEFAULT_TIER, billed_meters, rate, total
from quotas.record import FORMAT_VERSION, AttemptEntry, Outcome, UsageRecord
from quotas.settlement import Ending, Settled, finished, settle
from quotas.usage import TokenUsage
from routing.topology import Endpoint


class State(StrEnum):
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    COMMITTED = "committed"
    ENDED = "ended"


class Event(StrEnum):
    DISPATCH = "dispatch"
    FAIL_ATTEMPT = "fail_attempt"
    COMMIT = "commit"
    END = "end"


TABLE: dict[State, dict[Event, State]] = {
    State.ADMITTED: {Event.DISPATCH: State.DISPATCHED, Event.END: State.ENDED},
    State.DISPATCHED: {
        Event.FAIL_ATTEMPT: State.ADMITTED,
        Event.COMMIT: State.COMMITTED,
        Event.END: State.ENDED,
    },
    State.COMMITTED: {Event.END: State.ENDED},
    State.ENDED: {},
}


#: Of an exchange that no engine has answered yet; never changed.
NOTHING_SEEN = UsageFold(1, 1)
#: The same table by its columns: a move is then one look.
_ON: dict[Event, dict[State, State]] = {
    event: {state: moves[event] for state, moves in TABLE.items() if event in moves}
    for event in Event
}
# Found once: in Python 3.11 a member is looked up by a call.
_ADMITTED, _COMMITTED, _ENDED = State.ADMITTED, State.COMMITTED, State.ENDED
_FAIL_ATTEMPT = Event.FAIL_ATTEMPT
_ON_DISPATCH, _ON_COMMIT, _ON_END = _ON[Event.DISPATCH], _ON[Event.COMMIT], _ON[Event.END]


def _no_cost() -> int:
    """Where no limit is of money, so that nothing asks."""
    return 0


class IllegalMove(Exception):
    """An event that the state does not allow: our own bug, never an input's."""


class Closing(msgspec.Struct, frozen=True):
    """What an ended exchange leaves: the record when an engine was reached, and the settlement.

    ``record`` None: the engine never saw the request, and the reservation goes back in full.
    ``shared``: what it came to of the limits that all tenants share.
    """

    record: UsageRecord | None
    settlement: Settlement
    shared: tuple[Charge, ...] = ()


class Exchange:
    """Mutable by its four events. Times: ``*_s`` monotonic seconds, ``*_ms`` Unix milliseconds."""

    __slots__ = (
        "_open_attempt",
        "arrived_s",
        "attempts",
        "cap",
        "charges",
        "delivered",
        "engine_answered",
        "epoch",
        "first_event_s",
        "fold",
        "frames",
        "layout",
        "model",
        "n",
        "operation",
        "outcome",
        "price",
        "principal",
        "prompt_estimate",
        "prompts",
        "reached_engine",
        "request_id",
        "reserved",
        "shared",
        "started_ms",
        "state",
        "status",
        "tier",
    )

    def __init__(
        self,
        request_id: str,
        principal: Principal,
        model: ModelDoc,
        operation: str,
        prompts: int,
        n: int,
        prompt_estimate: int,
        cap: int,
        charges: tuple[Charge, ...],
        epoch: str,
        arrived_s: float,
        started_ms: int,
        shared: tuple[Charge, ...] = (),
        reserved: bool = False,  # noqa: FBT001, FBT002 -- the hot path takes no keywords
        tier: str = DEFAULT_TIER,
        layout: Layout | None = None,
    ) -> None:
        self.request_id = request_id
        self.principal = principal
        self.model = model
        self.tier = tier
        self.price = principal.price_of(model, tier)  # frozen at admission
        self.reserved = reserved  # on reserved throughput, which is paid by the hour
        self.operation = operation
        self.prompts = prompts
        self.n = n
        self.prompt_estimate = prompt_estimate
        self.cap = cap
        self.charges = charges
        self.layout = layout  # of those charges
        self.shared = shared  # drawn from leases
        self.epoch = epoch
        self.arrived_s = arrived_s
        self.started_ms = started_ms
        self.state = _ADMITTED
        self.attempts: list[AttemptEntry] = []
        self.fold: UsageFold = NOTHING_SEEN
        self.outcome: Outcome | None = None
        self.status = 0  # what the client got
        self.first_event_s = -1.0
        self.delivered = False  # a token went to the client's socket
        self.frames = 0  # data frames delivered: the estimate of a completion nobody counted
        self.reached_engine = False
        self.engine_answered = False  # the last attempt ended in a status line of the engine's
        self._open_attempt: tuple[Endpoint, int] | None = None

    def dispatch(
        self,
        endpoint: Endpoint,
        now_ms: int,
        transcribe: bool = False,  # noqa: FBT001, FBT002 -- the hot path takes no keywords
    ) -> int:
        """An attempt's first byte is about to go upstream; the attempt's number, from 0.

        ``transcribe``: the engine gives no running counts, so what it says is kept to be counted.
        """
        try:
            self.state = _ON_DISPATCH[self.state]
        except KeyError:
            raise self._illegal(Event.DISPATCH) from None
        self.reached_engine = True
        self.engine_answered = False
        kind = Transcript if transcribe else UsageFold
        self.fold = kind(self.prompts, self.n)
        self._open_attempt = (endpoint, now_ms)
        return len(self.attempts)

    def fail_attempt(self, status: int, now_ms: int) -> None:
        """The attempt ended before commit; another may follow. ``status`` 0: no answer came."""
        self._move(_FAIL_ATTEMPT)
        self.engine_answered = status > 0
        self._close_attempt(status, now_ms)

    def commit(self, now_s: float) -> None:
        """The engine's first event (or unary head) has come: no other endpoint from here on."""
        try:
            self.state = _ON_COMMIT[self.state]
        except KeyError:
            raise self._illegal(Event.COMMIT) from None
        self.first_event_s = now_s

    def end(self, outcome: Outcome, status: int, now_ms: int) -> bool:
        """Whatever ends it. False when it had ended already: the first ending stands."""
        state = self.state
        if state is _ENDED:
            return False
        if self._open_attempt is not None:
            self._close_attempt(status if state is _COMMITTED else 0, now_ms)
        self.state = _ON_END[state]
        self.outcome = outcome
        self.status = status
        return True

    def cost_told(self) -> bytes:
        """What the request costs if it ends now, whole: members of a JSON object, as its owner reads
        them elsewhere. The ledger's cost of such a record, to the nano.
        """
        price = self.price
        if price is None:
            return b'"cost":null,"currency":null'
        settled = settle(
            self._ending("ok"),
            tokenized=None,
            estimate=self.prompt_estimate,
            tokenized_completion=None,
            completion_estimate=self.frames,
        )
        nano = total(rate(price, settled.usage.meters(), self.operation, self.started_ms))
        return b'"cost":"%b","currency":"%b"' % (decimal(nano).encode(), price.currency.encode())

    def closing(
        self,
        now_s: float,
        tokenized: int | None = None,
        tokenized_completion: int | None = None,
    ) -> Closing:
        """Record and settlement of an ended exchange; changes nothing.

        ``tokenized`` and ``tokenized_completion``: the prompt and what was said, as /tokenize
        counted them, where the engine's own counts are missing.
        """
        fold, outcome = self.fold, self.outcome
        assert outcome is not None
        if outcome == "ok" and fold.final and fold.completion and fold.prompt is not None:
            settled = finished(fold.prompt, fold.completion, fold.cached or 0, fold.reasoning or 0)
        else:
            settled = settle(
                self._ending(outcome),
                tokenized=tokenized,
                estimate=self.prompt_estimate,
                tokenized_completion=tokenized_completion,
                completion_estimate=self.frames,
            )
        usage, epoch, principal, price = settled.usage, self.epoch, self.principal, self.price
        billed = billed_meters(usage, price.nano if price is not None else ())
        charged = self._charged(self.charges, settled, self.layout)
        settlement = Settlement(
            principal.tag, settled_as(self.request_id, epoch), epoch, charged, billed
        )
        shared = self._charged(self.shared, settled) if self.shared else ()
        if not self.reached_engine:
            return Closing(None, settlement, shared)
        arrived_s, first_s = self.arrived_s, self.first_event_s
        # To the nearest, as round() and max() have it, at a quarter of their price.
        ttft_ms = -1
        if first_s >= 0:
            ttft_ms = int((first_s - arrived_s) * 1000 + 0.5) if first_s > arrived_s else 0
        total_ms = int((now_s - arrived_s) * 1000 + 0.5) if now_s > arrived_s else 0
        record = UsageRecord(  # by place: of so many fields, each name is a search
            FORMAT_VERSION,
            self.request_id,
            principal.tenant.id,
            principal.project.id,
            principal.key.id,
            self.model.id,
            price.id if price is not None else 0,
            self.operation,
            self.n,
            self.prompts,
            self.reserved,
            self.prompt_estimate,
            self.cap,
            tuple(self.attempts),
            usage.meters(),
            billed,
            settled.source,
            settled.outcome,
            self.status,
            self.started_ms,
            ttft_ms,
            total_ms,
            epoch,
            charged,
        )
        return Closing(record, settlement, shared)

    def _ending(self, outcome: Outcome) -> Ending:
        fold = self.fold
        return Ending(
            cause=outcome,
            prompt=fold.prompt,
            completion=fold.completion,
            cached=fold.cached or 0,
            reasoning=fold.reasoning or 0,
            final=fold.final,
            delivered=self.delivered,
            void_finish=fold.void_finish,
        )

    def _charged(
        self, reserved: tuple[Charge, ...], settled: Settled, layout: Layout | None = None
    ) -> tuple[Charge, ...]:
        """True amounts per limit; nothing is refunded that was not proven unused.

        Proof is the engine's own count, or its refusal in place of an answer.
        """
        usage: TokenUsage | None = None  # as reserved
        if settled.source in ("engine_final", "engine_partial"):
            usage = settled.usage
        elif settled.source == "tokenized" and settled.outcome == "ok":
            usage = settled.usage  # all that was said, counted by the engine
        elif self.fold.prompt is not None:
            usage = TokenUsage(self.fold.prompt, 0, self.fold.completion or 0)
        elif self.engine_answered or not self.reached_engine:
            usage = TokenUsage()
        spends = layout is None or layout.spends
        cost_micro = self._cost_of(settled.usage) if spends else _no_cost
        return true_charges(reserved, usage, cost_micro, layout)

    def _cost_of(self, usage: TokenUsage) -> Callable[[], int]:
        return lambda: self._cost_micro(usage)

    def _cost_micro(self, usage: TokenUsage) -> int:
        """What is billed, in micro-units rounded up."""
        price = self.price
        if price is None or not self.reached_engine:
            return 0
        return micro(total(rate(price, usage.meters(), self.operation, self.started_ms)))

    def _close_attempt(self, status: int, now_ms: int) -> None:
        assert self._open_attempt is not None
        endpoint, started_ms = self._open_attempt
        self._open_attempt = None
        self.attempts.append(
            AttemptEntry(
                endpoint.id,
                endpoint.url,
                started_ms,
                now_ms,
                status,
                self.fold.prompt or 0,
                self.fold.completion or 0,
                self.n,
            )
        )

    def _move(self, event: Event) -> None:
        try:
            self.state = _ON[event][self.state]
        except KeyError:
            raise self._illegal(event) from None

    def _illegal(self, event: Event) -> IllegalMove:
        return IllegalMove(f"{event.value} while {self.state.value}")
