"""The allow-list of the data port: which method and path means what; everything else is a 404.

Also what every request gets whatever it asks for: an id, a trace, an error in the contract's shape,
one access line. Not here: what inference does with a request.
"""

import http
import logging
import secrets
from collections.abc import Callable
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
from gateway.telemetry.tracing import SpanFacts, Tracer, context_from
from gateway.wire.server import Reply, Request

OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
MODELS = "/v1/models"
KEY = "/v1/key"
#: The hex digits of a request's id, its trace and its span; and of how many are made at once.
_ID_CHARS = 80
_RANDOM_CHARS = 100 * _ID_CHARS
STATUS_TEXT = {status.value: str(status.value) for status in http.HTTPStatus}
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
        self._random = _Random()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request; never raises."""
        sample = self._tracer is not None and self._chance() < self._trace_sample
        fresh = self._random.hex()
        header = request.header(b"traceparent")
        trace = context_from(header, fresh[32:64], fresh[64:], sample=sample)
        call = Call(request, reply, fresh[:32], trace)
        try:
            await self._dispatch(call)
        except ContractError as error:
            self._refuse(call, answer(error, call.request_id))
        except Exception as error:  # the data plane's outer wall: our own bug, counted and named
            log.exception("request %s failed", call.request_id)
            self._counters.add("tf_internal_errors_total")
            self._refuse(call, answer(error, call.request_id))
        self._tell(call)

    async def _dispatch(self, call: Call) -> None:
        request = call.request
        operation = OPERATIONS.get(request.path)
        if operation is not None:
            if request.method != "POST":
                raise MethodNotAllowed(request.method, "POST")
            unready = self._unready()
            if unready:
                raise StoreAway(unready)
            await self._inference.serve(call, operation)
            call.status = call.status or 200
            return
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
        status = call.status
        self._responses[STATUS_TEXT.get(status) or str(status)] += 1
        exchange, request, trace = call.exchange, call.request, call.trace
        total_s = self._monotonic() - request.arrived_s
        now_s = self._unix_ms() / 1000
        key = model = endpoint = outcome = ""
        attempts = prompt_tokens = completion_tokens = 0
        ttft_ms = -1
        if exchange is not None:
            key, model = exchange.principal.key.path, exchange.model.name
            outcome = exchange.outcome or ""
            attempts = len(exchange.attempts)
            if attempts:
                last = exchange.attempts[-1]
                endpoint = last.endpoint
                prompt_tokens, completion_tokens = last.prompt_tokens, last.completion_tokens
            if exchange.first_event_s >= 0:
                ttft_ms = round((exchange.first_event_s - request.arrived_s) * 1000)
        self._log(
            AccessLine(
                now_s,
                call.request_id,
                request.method,
                request.path,
                status,
                request.peer,
                key,
                model,
                endpoint,
                attempts,
                outcome,
                prompt_tokens,
                completion_tokens,
                ttft_ms,
                round(total_s * 1000),
                trace.trace_id if trace.parent_id else "",
            )
        )
        if self._tracer is not None and exchange is not None:
            self._tracer.export(
                SpanFacts(
                    context=trace,
                    started_ns=int((now_s - total_s) * 1e9),
                    ended_ns=int(now_s * 1e9),
                    operation=exchange.operation,
                    request_id=call.request_id,
                    request_model=model,
                    endpoint=endpoint,
                    status=status,
                    outcome=outcome,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                    ttft_ms=ttft_ms,
                )
            )


def _say_nothing(_line: AccessLine) -> None:
    """The operator wants no access log."""


class _Random:
    """The system's secure source, some hundred ids at a time: each call of it costs a system call."""

    __slots__ = ("_at", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._at = _RANDOM_CHARS  # none are left

    def hex(self) -> str:
        """What one request needs: 40 random bytes as 80 hex digits."""
        at = self._at
        if at == _RANDOM_CHARS:
            self._text = secrets.token_hex(_RANDOM_CHARS // 2)
            at = 0
        self._at = end = at + _ID_CHARS
        return self._text[at:end]


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
