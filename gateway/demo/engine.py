"""An engine that answers as vLLM 0.32 does, without a GPU: for first steps and for tests.

Byte shapes, usage in streams, errors, aborts, metrics and /tokenize follow recorded answers of the
real one. One token a step for every choice; who leaves stops it at once, and its counters keep what
was made. ``faults`` makes it misbehave on purpose. Not a benchmark engine. HTTP is ``answer``'s,
the generation of one request ``job``'s.
"""

import asyncio
import contextlib
import json
import time
from typing import Any

from gateway.demo.answer import Answer
from gateway.demo.job import Job
from gateway.demo.text import MESSAGE_TOKENS, TEMPLATE_TOKENS, count
from gateway.demo.works import Faults, Headers, LogEntry, Works

__all__ = ["DemoEngine", "Faults", "LogEntry"]

VECTOR_SIZE = 8
COMPLETIONS_TOKENS = 16


class EngineError(Exception):
    """An error answer in vLLM's shape."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class DemoEngine(Works):
    """``token_ms``: one step. ``answer_tokens``: an answer ends by itself after about so many, as a
    model's does; None: only at its cap. ``log`` holds every inference request seen.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        model: str = "demo-model",
        token_ms: float = 8.0,
        max_model_len: int = 8192,
        answer_tokens: int | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._host = host
        self.port = port
        super().__init__(model, token_ms, answer_tokens, faults)
        self._max_model_len = max_model_len
        self.log: list[LogEntry] = []
        self._started_s = time.time()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, self._host, self.port, limit=1 << 20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- connections and routes --------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the client broke off; there is nobody to tell
        except asyncio.CancelledError:
            pass  # stop() ends connections so
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is to close."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        method, target, _ = lines[0].split(b" ", 2)
        headers: Headers = []
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers.append((name.strip().lower(), value.strip()))
        known = dict(headers)
        body = await reader.readexactly(int(known.get(b"content-length", b"0")))
        answer = Answer(reader, writer)
        try:
            path = target.partition(b"?")[0].decode()
            await self._route(method.decode(), path, headers, body, answer)
        except EngineError as error:
            answer.send(error.status, error.body)
        await writer.drain()
        return known.get(b"connection", b"").lower() != b"close" and not answer.dead

    async def _route(
        self, method: str, path: str, headers: Headers, body: bytes, answer: Answer
    ) -> None:
        if method == "GET":
            self._get(path, answer)
        elif path == "/tokenize" and not self.faults.no_tokenize:
            await asyncio.sleep(self.faults.tokenize_delay_s)
            tokens = self._prompts(_object(body))[0]
            answer.send(
                200,
                {
                    "count": tokens,
                    "max_model_len": self._max_model_len,
                    "tokens": list(range(tokens)),
                    "token_strs": None,
                },
            )
        elif path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            entry = LogEntry(path, headers, body, dict(headers).get(b"x-request-id", b"").decode())
            self.log.append(entry)
            await self._infer(entry, answer)
        else:
            answer.send(404, {"detail": "Not Found"})

    async def _infer(self, entry: LogEntry, answer: Answer) -> None:
        try:
            self._refuse_on_purpose()
            request = _object(entry.body)
            if entry.path == "/v1/embeddings":
                self._embed(entry, request, answer)
            else:
                await self._generate(entry, request, answer)
            entry.ended = entry.ended or "finished"
        except EngineError:
            entry.ended = "refused"
            raise
        finally:
            entry.ended = entry.ended or "aborted"
            entry.ended_s = time.monotonic()

    def _refuse_on_purpose(self) -> None:
        if self.faults.status:
            raise EngineError(self.faults.status, "a fault on purpose", "Fault")

    def _get(self, path: str, answer: Answer) -> None:
        if path == "/health":
            answer.send(200, b"")
        elif path == "/version":
            answer.send(200, {"version": "0.32.0"})
        elif path == "/load":
            answer.send(200, {"server_load": self.running})
        elif path == "/v1/models":
            shown = {
                "id": self.model,
                "object": "model",
                "created": int(self._started_s),
                "owned_by": "vllm",
                "root": self.model,
                "parent": None,
                "max_model_len": self._max_model_len,
            }
            answer.send(200, {"object": "list", "data": [shown]})
        elif path == "/metrics":
            self.scrapes += 1
            answer.send(200, self._metrics().encode(), "text/plain; version=0.0.4")
        else:
            answer.send(404, {"detail": "Not Found"})

    def _metrics(self) -> str:
        label = f'{{engine="0",model_name="{self.model}"}}'
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": min(1.0, self.running / 256),
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
            "request_success_total": self.finished,
        }
        lines = [f"vllm:{name}{label} {float(value)}" for name, value in values.items()]
        return "\n".join([f"process_start_time_seconds {self._started_s}", *lines]) + "\n"

    # -- inference ---------------------------------------------------------------------------

    def _prompts(self, request: dict[str, Any]) -> list[int]:
        """Tokens of each prompt."""
        if "messages" in request:
            messages = request["messages"]
            if not isinstance(messages, list) or not messages:
                raise EngineError(400, "messages must not be empty", "BadRequestError", "messages")
            text = sum(MESSAGE_TOKENS + count(_text_of(each)) for each in messages)
            return [TEMPLATE_TOKENS + text]
        prompt = request.get("prompt", request.get("input"))
        if prompt is None:
            message = "1 validation error: Field required"
            raise EngineError(400, message, "Bad Request", "body.prompt")
        if isinstance(prompt, str):
            return [count(prompt)]
        if not isinstance(prompt, list) or not prompt:
            raise EngineError(400, "prompt must not be empty", "BadRequestError", "prompt")
        if isinstance(prompt[0], int):
            return [len(prompt)]
        return [len(each) if isinstance(each, list) else count(str(each)) for each in prompt]

    def _check(self, request: dict[str, Any], prompts: list[int], cap: int) -> None:
        if request.get("model") != self.model:
            message = f"The model `{request.get('model')}` does not exist."
            raise EngineError(404, message, "NotFoundError", "model")
        temperature = request.get("temperature")
        if isinstance(temperature, (int, float)) and temperature < 0:
            message = f"temperature must be non-negative, got {temperature}."
            raise EngineError(400, message, "BadRequestError", "temperature")
        if max(prompts) + cap > self._max_model_len:
            message = (
                f"This model's maximum context length is {self._max_model_len} tokens. However, "
                f"your prompt contains {max(prompts)} input tokens. Please reduce the length."
            )
            raise EngineError(400, message, "BadRequestError", "input_tokens")

    def _embed(self, entry: LogEntry, request: dict[str, Any], answer: Answer) -> None:
        prompts = self._prompts(request)
        self._check(request, prompts, 0)
        self.prompt_tokens += sum(prompts)
        entry.prompt_tokens = sum(prompts)
        self.finished += 1
        data = [
            {
                "index": index,
                "object": "embedding",
                "embedding": [
                    ((tokens * 31 + axis * 7) % 100) / 100 for axis in range(VECTOR_SIZE)
                ],
            }
            for index, tokens in enumerate(prompts)
        ]
        body = {
            "id": f"embd-{entry.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": data,
            "usage": {
                "prompt_tokens": sum(prompts),
                "total_tokens": sum(prompts),
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        answer.send(200, body)

    async def _generate(self, entry: LogEntry, request: dict[str, Any], answer: Answer) -> None:
        chat = entry.path.endswith("chat/completions")
        prompts = self._prompts(request)
        cap = request.get("max_completion_tokens") or request.get("max_tokens")
        if cap is None and not chat:
            cap = COMPLETIONS_TOKENS
        self._check(request, prompts, int(cap) if cap is not None else 1)
        options = request.get("stream_options") or {}
        if self.faults.refuse_continuous_usage and options.get("continuous_usage_stats"):
            message = "Extra inputs are not permitted: continuous_usage_stats"
            raise EngineError(400, message, "Bad Request", "stream_options")
        await asyncio.sleep(self.faults.delay_s)
        room = self._max_model_len - max(prompts)
        job = Job(self, entry, request, prompts, room if cap is None else int(cap), chat=chat)
        self.running += 1
        self.prompt_tokens += sum(prompts) * job.n
        entry.prompt_tokens, entry.choices = sum(prompts), job.n
        leaving = asyncio.ensure_future(answer.left())
        try:
            if request.get("stream"):
                await job.stream(answer, leaving)
            else:
                await job.whole(answer, leaving)
        finally:
            leaving.cancel()
            await asyncio.wait((leaving,))  # the next request reads where it read
            self.running -= 1


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise EngineError(400, "JSON decode error", "Bad Request", "body") from None
    if not isinstance(value, dict):
        raise EngineError(400, "the body must be an object", "Bad Request", "body")
    return value


def _text_of(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
