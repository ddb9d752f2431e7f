"""Requests and exchanges of one small tenant, with the defaults a test does not care about."""

from typing import Any

from gateway.exchange import Exchange
from gateway.settings import WireSettings
from gateway.snapshot import KeyDoc, ModelDoc, Principal, ProjectDoc, TenantDoc
from gateway.wire.guard import Head, read_head
from gateway.wire.request import Request

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncookie: a=b\r\ncontent-length: %d\r\n\r\n"
REQUEST_ID = "ab" * 16


def request(body: bytes = b"", head: Head | None = None) -> Request:
    head = head or read_head(HEAD % len(body), WireSettings())
    return Request(head, body, "127.0.0.1", 0.0, head.method, head.path, head.query)


def principal() -> Principal:
    key = KeyDoc(id=3, project_id=2, name="ci", path="acme/bot/ci", secrets=(), limits=())
    return Principal(
        key,
        ProjectDoc(id=2, tenant_id=1, name="bot", limits=()),
        TenantDoc(id=1, name="acme", limits=()),
    )


def exchange(model: ModelDoc, **fields: Any) -> Exchange:
    defaults: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "principal": principal(),
        "model": model,
        "operation": "chat",
        "prompts": 1,
        "n": 1,
        "prompt_estimate": 9,
        "cap": 3,
        "charges": (),
        "epoch": "e",
        "arrived_s": 0.0,
        "started_ms": 1_000,
    }
    return Exchange(**(defaults | fields))
