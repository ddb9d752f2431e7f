"""The allow-list of the data port: which method and path means what; everything else is a 404.

Also what every request gets whatever it asks for: an id, a trace, an error in the contract's shape,
one access line. Not here: what inference does with a request.
"""

import logging
import re
import secrets
from collections.abc import Callable, Coroutine
from urllib.parse import unquote

import msgspec

from gateway.authentication import Authentication, may_use
from gateway.call import Call, id_headers
from gateway.contract.envelope import Operation
from gateway.contract.errors import (
    ContractError,
    MethodNotAllowed,
    ModelNotFound,
    StoreAway,
    UnknownRoute,
)
from gateway.errors import Answer, answer, retry_headers
from gateway.explain import Explainer
from gateway.inference import Inference
from gateway.reads import PATHS, ReadLane
from gateway.snapshot import ModelDoc, Snapshot
from gateway.telemetry.access import AccessLine, AccessLog
from gateway.telemetry.counters import Counters
from gateway.telemetry.tracing import SpanFacts, TraceContext, Tracer, context_from
from gateway.wire.server import Reply, Request
from quotas.record import AttemptEntry

OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
MODELS = "/v1/models"
KEY = "/v1/key"
#: The hex digits of a request's id, its trace and its span; how many bytes they are; and how many
#: requests' are made at once.
_IDS = re.compile("(.{32})(.{32})(.{16})")
_IDS_BYTES = 40
_IDS_AT_ONCE = 64
JSON = (b"content-type", b"application/json")
log = logging.getLogger("gateway.routes")


class Routes:
    """The server's handler. ``readiness`` tells whether this process may serve, and why not;
    ``unready`` that reason alone, "" where it may.
    """

    def __init__(
        self,
        *,
        inference: Inference,
        authentication: Authentication,
        reads: ReadLane,
        explainer: Explainer,
        snapshot: Snapshot,
        counters: Counters,
        access: AccessLog | None,
        tracer: Tracer | None,
        trace_sample: float,
        readiness: Callable[[], dict[str, object]],
        unready: Callable[[], str],
        unix_ms: Callable[[], int],
        monotonic: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._inference = inference
        self._authentication = authentication
        self._reads = reads
        self._explainer = explainer
        self._snapshot = snapshot
        self._counters = counters
        self._responses = counters.counters["tf_responses_total"]
        self._log = access.write if access is not None else _say_nothing
        self._tracer = tracer
        self._trace_sample = trace_sample
        self._readiness = readiness
        self._unready = unready
        self._unix_ms = unix_ms
        self._monotonic = monotonic
        self._chance = chance
        self._texts = _StatusTexts()
        self._ids: list[tuple[str, str, str]] = []

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request; never raises."""
        if not self._ids:
            self._ids = _fresh_ids()
        request_id, trace_id, span_id = self._ids.pop()
        sample = self._tracer is not None and self._chance() < self._trace_sample
        header = request.header(b"traceparent")
        if header is None:
            trace = TraceContext(trace_id, span_id, "", sample)
        else:
            trace = context_from(header, trace_id, span_id, sample=sample)
        call = Call(request, reply, request_id, trace)
        try:
            await self._dispatch(call)
            call.status = call.status or 200
        except ContractError as error:
            self._refuse(call, answer(error, call.request_id))
        except Exception as error:  # the data plane's outer wall: our own bug, counted and named
            log.exception("request %s failed", call.request_id)
            self._counters.add("tf_internal_errors_total")
            self._refuse(call, answer(error, call.request_id))
        self._tell(call)

    def _dispatch(self, call: Call) -> Coroutine[None, None, None]:
        """Who answers it."""
        request = call.request
        operation = OPERATIONS.get(request.path)
        if operation is None:
            return self._look(call)
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST")
        unready = self._unready()
        if unready:
            raise StoreAway(unready)
        return self._inference.serve(call, operation)

    async def _look(self, call: Call) -> None:
        """All that is no inference only looks."""
        request = call.request
        if request.method not in ("GET", "HEAD"):
            raise UnknownRoute(request.method, request.path)
        if request.path == "/healthz":
            self._send(call, 200, {"status": "ok"})
        elif request.path == "/readyz":
            readiness = self._readiness()
            self._send(call, 200 if readiness["ready"] else 503, readiness)
        elif request.path == MODELS:
            self._models(call)
        elif request.path.startswith(MODELS + "/"):
            self._model(call, unquote(request.path[len(MODELS) + 1 :]))
        elif request.path == KEY:
            principal = self._authentication.principal_of(request)
            self._send(call, 200, await self._explainer.look(principal))
        elif request.path in PATHS:
            await self._read(call)
        else:
            raise UnknownRoute(request.method, request.path)

    def _models(self, call: Call) -> None:
        """Only what the key may use, in the order of their names."""
        principal = self._authentication.principal_of(call.request)
        models = sorted(self._snapshot.models.values(), key=lambda model: model.name)
        data = [_shown(each) for each in models if may_use(principal, each)]
        self._send(call, 200, {"object": "list", "data": data})

    def _model(self, call: Call, name: str) -> None:
        principal = self._authentication.principal_of(call.request)
        model = self._snapshot.model_by_name.get(name)
        if model is None or not may_use(principal, model):
            raise ModelNotFound(name)
        self._send(call, 200, _shown(model))

    async def _read(self, call: Call) -> None:
        """What only SQL knows, for the key's own eyes."""
        request = call.request
        principal = self._authentication.principal_of(request)
        found = await self._reads.read(principal, request.path, request.query)
        call.status = found.status
        headers = [JSON, *retry_headers(found.retry_after_ms), *id_headers(call.request_id)]
        call.reply.send(found.status, headers, found.body)

    def _send(self, call: Call, status: int, body: object) -> None:
        call.status = status
        headers = [JSON, *id_headers(call.request_id)]
        call.reply.send(status, headers, msgspec.json.encode(body))

    def _refuse(self, call: Call, refusal: Answer) -> None:
        call.status = refusal.status
        if call.reply.gone:
            return
        if call.reply.started:  # a stream whose head went out before its first event
            call.status = 200
            call.reply.write(b"data: " + refusal.body + b"\n\n")
            call.reply.finish()
            return
        headers = [JSON, *refusal.headers, *id_headers(call.request_id)]
        call.reply.send(refusal.status, headers, refusal.body)

    def _tell(self, call: Call) -> None:
        """The access line, the status counter and the span of one answered request."""
        exchange, request, trace, status = call.exchange, call.request, call.trace, call.status
        self._responses[self._texts[status]] += 1
        total_s = self._monotonic() - request.arrived_s
        now_s = self._unix_ms() / 1000
        trace_id = trace.trace_id if trace.parent_id else ""
        if exchange is None:
            self._log(
                AccessLine(
                    now_s,
                    call.request_id,
                    request.method,
                    request.path,
                    status,
                    request.peer,
                    total_ms=round(total_s * 1000),
                    trace_id=trace_id,
                )
            )
            return
        attempts = exchange.attempts
        last = attempts[-1] if attempts else _NO_ATTEMPT
        first_s = exchange.first_event_s
        line = AccessLine(
            now_s,
            call.request_id,
            request.method,
            request.path,
            status,
            request.peer,
            exchange.principal.key.path,
            exchange.model.name,
            last.endpoint,
            len(attempts),
            exchange.outcome or "",
            last.prompt_tokens,
            last.completion_tokens,
            round((first_s - request.arrived_s) * 1000) if first_s >= 0 else -1,
            round(total_s * 1000),
            trace_id,
        )
        self._log(line)
        if self._tracer is not None:
            started_ns, ended_ns = int((now_s - total_s) * 1e9), int(now_s * 1e9)
            self._tracer.export(_span(trace, exchange.operation, line, started_ns, ended_ns))


#: What is said of a request that was forwarded to nobody.
_NO_ATTEMPT = AttemptEntry(0, "", 0, 0, 0, 0, 0, 1)


def _span(
    trace: TraceContext, operation: str, line: AccessLine, started_ns: int, ended_ns: int
) -> SpanFacts:
    """What the access line says, as a span."""
    return SpanFacts(
        context=trace,
        started_ns=started_ns,
        ended_ns=ended_ns,
        operation=operation,
        request_id=line.request_id,
        request_model=line.model,
        endpoint=line.endpoint,
        status=line.status,
        outcome=line.outcome,
        prompt_tokens=line.prompt_tokens,
        completion_tokens=line.completion_tokens,
        ttft_ms=line.ttft_ms,
    )


def _say_nothing(_line: AccessLine) -> None:
    """The operator wants no access log."""


class _StatusTexts(dict[int, str]):
    """A status as text, found once."""

    def __missing__(self, status: int) -> str:
        text = self[status] = str(status)
        return text


def _fresh_ids() -> list[tuple[str, str, str]]:
    """Ids of the next requests, from the system's secure source: each call of it is a system call."""
    return _IDS.findall(secrets.token_hex(_IDS_AT_ONCE * _IDS_BYTES))


def _shown(model: ModelDoc) -> dict[str, object]:
    """One entry of /v1/models, with the spellings that clients look for."""
    shown: dict[str, object] = {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "tokenfactory",
    }
    if model.context_tokens is not None:
        shown["max_model_len"] = model.context_tokens
        shown["context_length"] = model.context_tokens
    if model.max_output_tokens is not None:
        shown["max_output_tokens"] = model.max_output_tokens
    return shown
