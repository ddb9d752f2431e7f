"""A demo engine: answers as vLLM 0.32 does, byte shapes, counters, aborts and errors.

For first steps without a GPU and for tests, which may set its ``faults`` at run time and read its
``log``. It makes believable text, not sense. A server of its own, so that it shares no mistake with
the gateway's wire code.
"""

import asyncio
import secrets
import time
from collections import deque

from gateway.demo.answer import Answer
from gateway.demo.asked import (
    Asked,
    EmbeddingsBody,
    Refused,
    TokenizeBody,
    chat_ids,
    check_length,
    check_model,
    decode,
    prompt_ids,
    read_chat,
    read_text,
)
from gateway.demo.batch import Batch, Generation, PrefixCache
from gateway.demo.connection import Connection, Request
from gateway.demo.faults import Faults, Seen
from gateway.demo.shapes import (
    ERROR_TYPES,
    VERSION,
    embeddings_body,
    error,
    metrics_page,
    models_body,
    tokenize_body,
)
from gateway.demo.text import pieces, vector

KEEP_ALIVE_S = 5.0
SEQUENCES_MAX = 1024
DIMENSIONS = 64
LOG_MAX = 10_000
METHODS = {
    "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/embeddings": "POST",
    "/tokenize": "POST", "/v1/models": "GET", "/health": "GET", "/ping": "GET",
    "/version": "GET", "/load": "GET", "/metrics": "GET",
}  # fmt: skip
MODEL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
ID_PREFIX = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}


class DemoEngine:
    """One listening engine. ``token_ms`` is its step, ``answer_tokens`` the range in which answers
    end by themselves (None: only at their cap). ``stop`` and ``start`` keep the port.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        model: str = "demo-model",
        seed: int = 0,
        token_ms: float = 8.0,
        max_model_len: int = 8192,
        answer_tokens: tuple[int, int] | None = None,
        api_key: str | None = None,
        faults: Faults | None = None,
        log_max: int = LOG_MAX,
    ) -> None:
        self.host = host
        self.port = port
        self.model = model
        self.max_model_len = max_model_len
        self.faults = faults or Faults()
        self.log: deque[Seen] = deque(maxlen=log_max)
        self.batch = Batch(token_ms / 1000, SEQUENCES_MAX)
        self._seed = seed
        self._answer_tokens = answer_tokens
        self._authorization = f"Bearer {api_key}".encode() if api_key else None
        self._prefixes = PrefixCache()
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._started_s = time.time()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def connections(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything; streams are cut."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._open):
            connection.transport.abort()
        await self._server.wait_closed()
        if self._open:
            await asyncio.wait([connection.closed for connection in self._open])
        self.batch.close()
        self._server = None

    def page(self) -> bytes:
        """/metrics."""
        batch = self.batch
        return metrics_page(
            self.model,
            {
                "num_requests_running": batch.running,
                "num_requests_waiting": batch.waiting,
                "kv_cache_usage_perc": batch.cache_usage,
            },
            {
                "prompt_tokens": batch.counters["prompt_tokens"],
                "generation_tokens": batch.counters["generation_tokens"],
                "prefix_cache_queries": self._prefixes.queries,
                "prefix_cache_hits": self._prefixes.hits,
            },
            batch.successes,
            self._started_s,
        )

    # -- requests -----------------------------------------------------------------------------

    def _accept(self) -> Connection:
        return Connection(self._handle, self._open, self._admit_connection, self._idle_s)

    def _admit_connection(self) -> bool:
        return not self.faults.refuse_connections

    def _idle_s(self) -> float:
        wanted = self.faults.idle_close_s
        return KEEP_ALIVE_S if wanted is None else wanted

    def _handle(self, request: Request, connection: Connection) -> None:
        told_id = request.header(b"x-request-id").decode("latin-1")
        seen = Seen(
            request_id=told_id,
            method=request.method,
            path=request.path,
            headers=request.headers,
            body=request.body,
            began_s=time.monotonic(),
        )
        self.log.append(seen)
        answer = Answer(connection, seen, self.batch, self.faults)
        try:
            self._route(request, answer, told_id or secrets.token_hex(8))
        except Refused as refused:
            answer.refuse(
                refused.status,
                error(refused.status, refused.kind, refused.message, refused.param),
            )

    def _route(self, request: Request, answer: Answer, request_id: str) -> None:
        path = request.path
        if not self._authorized(request):
            answer.refuse(401, b'{"error":"Unauthorized"}')
        elif path not in METHODS:
            answer.refuse(404, b'{"detail":"Not Found"}')
        elif request.method != METHODS[path]:
            answer.refuse(405, b'{"detail":"Method Not Allowed"}')
        elif path in MODEL_PATHS:
            self._serve(request, answer, ID_PREFIX.get(path, "embd-") + request_id)
        elif path == "/tokenize":
            answer.whole(200, self._tokenize(request.body))
        else:
            self._page(path, answer)

    def _authorized(self, request: Request) -> bool:
        if self._authorization is None or not request.path.startswith("/v1"):
            return True
        return request.header(b"authorization") == self._authorization

    def _page(self, path: str, answer: Answer) -> None:
        if path == "/v1/models":
            body = models_body(self.model, int(time.time()), self.max_model_len)
            answer.whole(200, body)
        elif path == "/metrics":
            answer.whole(200, self.page(), b"text/plain; version=1.0.0; charset=utf-8")
        elif path == "/version":
            answer.whole(200, b'{"version":"%b"}' % VERSION.encode())
        elif path == "/load":
            answer.whole(200, b'{"server_load":%d}' % (self.batch.running + self.batch.waiting))
        else:
            answer.whole(self.faults.health_status or 200, b"")

    def _serve(self, request: Request, answer: Answer, request_id: str) -> None:
        faults = self.faults
        if faults.status:
            kind = ERROR_TYPES.get(faults.status, "Error")
            told = error(faults.status, kind, "The engine was told to fail.", None)
            if faults.status == 401:  # noqa: PLR2004 -- vLLM's guard speaks in a bare string
                told = b'{"error":"Unauthorized"}'
            after = [(b"retry-after", faults.retry_after.encode())] if faults.retry_after else []
            answer.refuse(faults.status, told, after)
            return
        if request.path == "/v1/embeddings":
            self._embed(request.body, answer, request_id)
            return
        chat = request.path == "/v1/chat/completions"
        asked = (read_chat if chat else read_text)(request.body, self.model, self.max_model_len)
        self._check_options(request.body, asked)
        generation = Generation(asked, self._seed, self._answer_tokens, self._prefixes)
        answer.generate(generation, request_id, int(time.time()), self.model)

    def _check_options(self, body: bytes, asked: Asked) -> None:
        """Older engines that do not know an option."""
        if self.faults.refuse_stream_options and b'"stream_options"' in body:
            name = "stream_options"
        elif self.faults.refuse_continuous_usage and asked.continuous_usage:
            name = "stream_options.continuous_usage_stats"
        else:
            return
        message = f"Extra inputs are not permitted: {name}"
        raise Refused(400, "Bad Request", message, f"body.{name}")

    def _embed(self, body: bytes, answer: Answer, request_id: str) -> None:
        told = decode(body, EmbeddingsBody)
        check_model(told.model, self.model)
        prompts = prompt_ids(told.input, self.max_model_len + 1)
        check_length(prompts, self.max_model_len)
        size = DIMENSIONS if told.dimensions is None else told.dimensions
        if not 1 <= size <= DIMENSIONS:
            message = f"dimensions must be between 1 and {DIMENSIONS}, got {size}."
            raise Refused(400, "BadRequestError", message, "dimensions")
        vectors = [vector(repr(ids).encode(), size) for ids in prompts]
        tokens = sum(map(len, prompts))
        self.batch.counters["prompt_tokens"] += tokens
        self.batch.successes["stop"] += len(prompts)
        answer.seen.prompt_tokens = tokens
        shown = None if self.faults.usage == "none" else tokens
        as_base64 = told.encoding_format == "base64"
        now_s = int(time.time())
        answer.whole_late(
            embeddings_body(request_id, now_s, self.model, vectors, shown, as_base64=as_base64)
        )

    def _tokenize(self, body: bytes) -> bytes:
        told = decode(body, TokenizeBody)
        check_model(told.model, self.model)
        strings: list[str] | None = None
        if told.messages is not None:
            ids = chat_ids(told.messages, told.tools)
        elif told.prompt is not None:
            ids = prompt_ids(told.prompt)[0]
            if not told.add_special_tokens:
                ids = ids[1:]
            if told.return_token_strs:
                strings = ["<s>"] * told.add_special_tokens + pieces(told.prompt)
        else:
            raise Refused(400, "Bad Request", "prompt or messages is required", "body.prompt")
        return tokenize_body(ids, self.max_model_len, strings)
