"""Trace context: continue the caller's, or begin one; and spans as the collector gets them."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gateway.telemetry.tracing import SpanFacts, Tracer, context_from

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_callers_trace_goes_on_with_a_span_of_ours():
    context = context_from(TRACE, "ab" * 16, "ab" * 8, sample=False)

    assert context.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert context.parent_id == "b7ad6b7169203331"
    assert context.sampled
    assert context.header == b"00-0af7651916cd43dd8448eb211c80319c-abababababababab-01"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"garbage",
        TRACE + b"-x",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        TRACE.replace(b"0af", b"0AF"),
        TRACE.replace(b"b7ad6b7169203331", b"0" * 16),
    ],
)
def test_invalid_header_begins_a_new_trace(header):
    context = context_from(header, "ab" * 16, "ab" * 8, sample=True)

    assert (context.trace_id, context.parent_id, context.sampled) == ("ab" * 16, "", True)


class Collector(BaseHTTPRequestHandler):
    bodies: list[bytes] = []  # noqa: RUF012 -- one server, one test

    def do_POST(self):
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Silent."""


async def test_sampled_span_reaches_the_collector_with_the_ids_that_went_out():
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracer = Tracer(f"http://127.0.0.1:{server.server_port}", "test")
        context = context_from(TRACE, "ab" * 16, "ab" * 8, sample=False)
        tracer.export(
            SpanFacts(
                context=context,
                started_ns=1_000,
                ended_ns=2_000,
                operation="chat",
                request_id="req-1",
                request_model="llama",
                endpoint="http://e",
                status=200,
                outcome="ok",
                prompt_tokens=3,
                completion_tokens=4,
                ttft_ms=5,
            )
        )
        await asyncio.to_thread(tracer.close)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    [body] = Collector.bodies
    assert bytes.fromhex(context.trace_id) in body
    assert bytes.fromhex(context.span_id) in body
    assert b"gen_ai.request.model" in body
