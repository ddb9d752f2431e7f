"""One request, one whole answer or a clear failure; the connection is gone either way."""

import asyncio
import json

import pytest

from gateway.wire.dial import parse_endpoint
from gateway.wire.fetch import FetchFailed, fetch
from tests.support.engine import serving, start_engine
from tests.support.until import until

__all__ = ["start_engine"]


async def test_pages_of_an_engine_are_fetched(start_engine):
    engine = await start_engine(max_model_len=4096)
    address = parse_endpoint(engine.url)
    models = await fetch(address, "GET", "/v1/models")
    health = await fetch(address, "GET", "/health")
    metrics = await fetch(address, "GET", "/metrics")

    assert json.loads(models.body)["data"][0]["max_model_len"] == 4096
    assert (health.status, health.body) == (200, b"")
    assert b"vllm:num_requests_running{" in metrics.body


async def test_tokenize_is_asked_with_a_body(start_engine):
    engine = await start_engine()
    body = json.dumps({"model": "demo-model", "messages": [{"role": "user", "content": "hi"}]})
    fetched = await fetch(
        parse_endpoint(engine.url), "POST", "/tokenize",
        headers=[(b"content-type", b"application/json")], body=body.encode(),
    )  # fmt: skip

    assert json.loads(fetched.body)["count"] > 0


async def test_an_error_status_is_an_answer_and_a_redirect_is_not_followed():
    async def elsewhere(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
        )
        await reader.read()

    async with serving(elsewhere) as address:
        fetched = await fetch(address, "GET", "/")

    assert fetched.status == 302


async def test_what_is_sent_is_what_was_asked_for():
    seen = b""

    async def remember(reader, writer):
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with serving(remember) as address:
        prefixed = parse_endpoint(f"http://127.0.0.1:{address.port}/engine/")
        await fetch(prefixed, "POST", "/x", headers=[(b"accept", b"*/*")], body=b"hi")

    head, _, body = seen.partition(b"\r\n\r\n")
    assert body == b"hi"
    assert head.split(b"\r\n") == [
        b"POST /engine/x HTTP/1.1", b"host: 127.0.0.1:%d" % address.port,
        b"accept-encoding: identity", b"accept: */*", b"content-length: 2", b"connection: close",
    ]  # fmt: skip


async def test_slow_drip_past_the_timeout_fails_and_closes():
    gone = asyncio.Event()

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            gone.set()

    async with serving(drip) as address:
        with pytest.raises(FetchFailed, match="in time"):
            await fetch(address, "GET", "/", timeout_s=0.15)
        await asyncio.wait_for(gone.wait(), 2)


async def test_endless_answer_stops_at_the_bound_and_closes():
    sent = 0
    gone = asyncio.Event()

    async def endless(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
                sent += 1024
                await writer.drain()
        finally:
            gone.set()

    async with serving(endless) as address:
        with pytest.raises(FetchFailed, match="too large"):
            await fetch(address, "GET", "/", max_bytes=100_000)
        await asyncio.wait_for(gone.wait(), 2)

    assert sent < 64 << 20


async def test_nobody_there_fails_clearly():
    with pytest.raises(FetchFailed, match="cannot connect"):
        await fetch(parse_endpoint("http://127.0.0.1:1"), "GET", "/")


async def test_engines_that_are_stopped_while_asked_fail_the_fetch(start_engine):
    engine = await start_engine(token_ms=50.0)
    body = b'{"model":"demo-model","prompt":"x","max_tokens":1000}'
    asked = asyncio.create_task(
        fetch(parse_endpoint(engine.url), "POST", "/v1/completions", body=body)
    )
    await until(lambda: engine.running)
    await engine.stop()
    with pytest.raises(FetchFailed, match="closed"):
        await asked
