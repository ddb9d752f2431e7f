"""An engine small enough to see through: fixed answers by path, on a real loopback socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

Answer = tuple[int, bytes]
Asked = tuple[str, str, dict[str, str], Any]  # method, path, headers, JSON body or None


class SmallEngine:
    """``answers`` maps a path to (status, body) or to a function of the JSON body; else 404."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, Answer | Callable[[Any], Answer]] = {}
        self.asked: list[Asked] = []

    def times(self, path: str) -> int:
        return sum(each[1] == path for each in self.asked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
            body = json.loads(raw) if raw else None
            self.asked.append((method, path, headers, body))
            answer = self.answers.get(path, (404, b'{"error":"Not Found"}'))
            status, text = answer(body) if callable(answer) else answer
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                % (status, len(text))
            )
            writer.write(text)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller left
        finally:
            writer.close()


@asynccontextmanager
async def small_engine() -> AsyncIterator[SmallEngine]:
    engine = SmallEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield engine


def sse(*events: Any) -> bytes:
    lines = [b"data: " + json.dumps(event).encode() for event in events]
    return b"\n\n".join([*lines, b"data: [DONE]", b""])


def chunk(*, usage: dict[str, int] | None = None, choices: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = {"choices": [{"index": n, "delta": {}} for n in range(choices)]}
    return made | ({"usage": usage} if usage else {})


def vllm_like(engine: SmallEngine, *, started_s: float = 1.0, waiting: float = 0.0) -> None:
    """What a vLLM answers to our questions: one model, "llama", of 4,096 tokens."""
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}

    def chat(body: Any) -> Answer:
        options = body.get("stream_options", {})
        each = usage if options.get("continuous_usage_stats") else None
        final = [chunk(usage=usage, choices=0)] if options.get("include_usage") else []
        return 200, sse(chunk(usage=each), chunk(usage=each), *final)

    metrics = (
        f'vllm:num_requests_waiting 0\nvllm:num_requests_waiting{{engine="1"}} {waiting}\n'
        f"vllm:num_requests_running 2.0\nvllm:kv_cache_usage_perc 0.5\n"
        f"vllm:prompt_tokens_total 70.0\nprocess_start_time_seconds {started_s}\n"
    )
    models = {"data": [{"id": "llama", "max_model_len": 4096}, {"id": "adapter"}]}
    engine.answers |= {
        "/health": (200, b""),
        "/v1/models": (200, json.dumps(models).encode()),
        "/metrics": (200, metrics.encode()),
        "/tokenize": (200, b'{"count": 2, "max_model_len": 4096, "tokens": [1, 2]}'),
        "/v1/chat/completions": chat,
    }
