"""W3C trace context passed on for every request, and OTLP spans for a sample when configured.

The parse is ours and costs under a microsecond; the SDK is imported only where a collector is
configured (it costs 20 us a sampled span). Attribute names are the GenAI conventions', kept here
alone because they still move. Source: https://www.w3.org/TR/trace-context/ (version 00).
"""

import re
from typing import Any

import msgspec

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
SAMPLED = 1


class TraceContext(msgspec.Struct, frozen=True):
    """``span_id`` is ours; ``parent_id`` the caller's, empty at a root."""

    trace_id: str
    span_id: str
    parent_id: str
    sampled: bool

    @property
    def header(self) -> bytes:
        flags = "01" if self.sampled else "00"
        return f"00-{self.trace_id}-{self.span_id}-{flags}".encode()


def context_from(
    header: bytes | None, trace_id: str, span_id: str, *, sample: bool
) -> TraceContext:
    """Continue the caller's trace, or begin one. An invalid header begins a new trace.

    ``trace_id`` and ``span_id`` are fresh: 32 and 16 random hex digits. A caller's sampled flag is
    obeyed only when set: ``sample`` may still turn a trace on.
    """
    match = _TRACEPARENT.match(header) if header else None
    if match is None or match[1] == b"0" * 32 or match[2] == b"0" * 16:
        return TraceContext(trace_id, span_id, "", sample)
    sampled = bool(int(match[3], 16) & SAMPLED)
    return TraceContext(match[1].decode(), span_id, match[2].decode(), sampled or sample)


class SpanFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a span says of one request. Times are Unix nanoseconds."""

    context: TraceContext
    started_ns: int
    ended_ns: int
    operation: str
    request_id: str
    request_model: str
    endpoint: str
    status: int
    outcome: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: int


class Tracer:
    """Exports spans over OTLP/HTTP in a thread of the SDK's own."""

    def __init__(self, endpoint: str, service_version: str) -> None:
        # Imported here: 0.2 s of start-up for those alone who configured a collector.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        resource = Resource.create(
            {"service.name": "tokenfactory", "service.version": service_version}
        )
        self._ids = _GivenIds()
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)  # type: ignore[arg-type]
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tokenfactory")

    def export(self, facts: SpanFacts) -> None:
        """Queue one finished span; unsampled ones cost nothing."""
        if not facts.context.sampled:
            return
        from opentelemetry import trace  # noqa: PLC0415 -- see __init__

        parent = None
        if facts.context.parent_id:
            remote = trace.SpanContext(
                int(facts.context.trace_id, 16),
                int(facts.context.parent_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(SAMPLED),
            )
            parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        self._ids.next_ids = (int(facts.context.trace_id, 16), int(facts.context.span_id, 16))
        span = self._tracer.start_span(
            f"{facts.operation} {facts.request_model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=facts.started_ns,
            attributes=_attributes(facts),
        )
        if facts.status >= 500:  # noqa: PLR2004 -- HTTP's own boundary
            span.set_status(trace.StatusCode.ERROR)
        span.end(facts.ended_ns)

    def close(self) -> None:
        self._provider.shutdown()


class _GivenIds:
    """Hands the SDK the ids that already went out in the traceparent header."""

    def __init__(self) -> None:
        self.next_ids = (1, 1)

    def generate_trace_id(self) -> int:
        return self.next_ids[0]

    def generate_span_id(self) -> int:
        return self.next_ids[1]

    def is_trace_id_random(self) -> bool:
        return True


def _attributes(facts: SpanFacts) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": facts.operation,
        "gen_ai.request.model": facts.request_model,
        "gen_ai.usage.input_tokens": facts.prompt_tokens,
        "gen_ai.usage.output_tokens": facts.completion_tokens,
        "server.address": facts.endpoint,
        "http.response.status_code": facts.status,
        "tf.request_id": facts.request_id,
        "tf.outcome": facts.outcome,
        "tf.ttft_ms": facts.ttft_ms,
    }
