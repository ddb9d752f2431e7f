"""What an endpoint is and can do, asked of it once: models, health, metrics, tokenize, usage.

The usage question is a real one-token stream, so it costs tokens at the engine; whoever asks counts
them. Nothing here is believed for ever: ``gateway.control.probes`` asks again after a restart.
Not here: how often, and who is told.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import msgspec

from gateway.engines import credential_of
from gateway.wire.dial import Address, parse_endpoint
from gateway.wire.fetch import Fetched, FetchFailed
from routing.exposition import Exposition, read
from routing.topology import Dialect, Endpoint, UsageMode

HEALTH_PATHS: dict[Dialect, str] = {
    "vllm": "/health",
    "nim": "/v1/health/ready",
    "openai": "/v1/models",
}
METRICS_PATHS: dict[Dialect, str | None] = {
    "vllm": "/metrics",
    "nim": "/v1/metrics",
    "openai": None,
}
HEALTH_TIMEOUT_S = 2.0
SCRAPE_TIMEOUT_S = 2.0
#: The first request of an engine may wait for its kernels to be compiled.
USAGE_TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 4 << 20
#: Ways to ask for counts, best first; the next is tried when the engine answers 400.
ASKS: tuple[UsageMode, ...] = ("continuous", "final", "none")
STREAM_OPTIONS: dict[UsageMode, dict[str, bool] | None] = {
    "continuous": {"include_usage": True, "continuous_usage_stats": True},
    "final": {"include_usage": True},
    "none": None,
}
#: Asked in turn: what a conversation costs, and what two more messages add to it.
TEMPLATE_QUESTIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "x"}],
    [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "x"},
    ],
)
#: The least JSON of a message: what its place in a template may cost and be covered by bytes.
MESSAGE_JSON_BYTES = len(b'{"role":"user","content":""},')
Operation = Literal["chat", "completions"]
PATHS: dict[Operation, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Fetch(Protocol):
    """``gateway.wire.fetch.fetch``: raises ``FetchFailed`` when there is no whole answer."""

    async def __call__(
        self,
        address: Address,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        timeout_s: float = 5.0,
        max_bytes: int = 4 << 20,
        ca_file: str | None = None,
    ) -> Fetched: ...


class Probing(Protocol):
    """Asks a question that costs tokens at an engine, and keeps what it cost."""

    async def __call__(
        self, endpoint: str, ask: Callable[[], Awaitable["UsageFound"]]
    ) -> "UsageFound": ...


async def unrecorded(
    endpoint: str,  # noqa: ARG001 -- part of the shape
    ask: Callable[[], Awaitable["UsageFound"]],
) -> "UsageFound":
    """Where nobody keeps what probes cost."""
    return await ask()


class UsageFound(msgspec.Struct, frozen=True):
    """What one model's streams report, and what asking cost. ``mode`` None: not to be found out
    (an embedding model, an engine that did not answer).
    """

    mode: UsageMode | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one look at an endpoint found.

    ``models``: name at the engine -> context in tokens, None where it does not say. ``usage``:
    model name -> what its streams report. ``problem`` is one sentence, empty when there is none.
    """

    url: str
    reachable: bool
    healthy: bool
    problem: str = ""
    models: dict[str, int | None] = {}
    metrics: bool = False
    tokenize: bool = False
    usage: dict[str, UsageFound] = {}

    def shown(self) -> dict[str, object]:
        """As an operator reads it, for one model or several."""
        usage = {name: found.mode or "unknown" for name, found in self.usage.items()}
        cost = sum(each.prompt_tokens + each.completion_tokens for each in self.usage.values())
        lines: dict[str, object] = {
            "reachable": self.reachable,
            "healthy": self.healthy,
            "models": dict(self.models),
            "usage_in_streams": usage,
            "metrics": self.metrics,
            "tokenize": self.tokenize,
            "probe_tokens": cost,
        }
        return lines | ({"problem": self.problem} if self.problem else {})


class Caller:
    """Speaks to one endpoint, with its credential, read when made and never logged."""

    def __init__(self, endpoint: Endpoint, fetch: Fetch, environ: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._fetch = fetch
        self._headers: list[tuple[bytes, bytes]] = []
        credential = credential_of(endpoint, environ)
        # A line end in a secret is a mistake in a file; sent, it would be a second header.
        if credential and not set(credential) & set(b"\r\n\0"):
            self._headers.append((b"authorization", b"Bearer " + credential))

    async def get(self, path: str, timeout_s: float) -> Fetched:
        return await self._call("GET", path, self._headers, b"", timeout_s)

    async def post(self, path: str, document: object, timeout_s: float) -> Fetched:
        headers = [*self._headers, (b"content-type", b"application/json")]
        return await self._call("POST", path, headers, msgspec.json.encode(document), timeout_s)

    async def _call(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeout_s: float,
    ) -> Fetched:
        try:
            address = parse_endpoint(self._endpoint.url)
        except ValueError as error:
            raise FetchFailed(str(error)) from None
        return await self._fetch(
            address,
            method,
            path,
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            max_bytes=ANSWER_BYTES_MAX,
            ca_file=self._endpoint.ca_file,
        )


async def probe_endpoint(
    endpoint: Endpoint,
    upstreams: Iterable[str],
    fetch: Fetch,
    environ: Mapping[str, str],
    probing: Probing = unrecorded,
) -> ProbeReport:
    """One look at everything. Never raises; an endpoint that is away is a report too.

    Asks the usage question of each upstream model that the engine lists (of each at all, when it
    lists none), unless the endpoint's ``usage`` is configured.
    """
    caller = Caller(endpoint, fetch, environ)
    problem = await ask_health(caller, endpoint.dialect)
    healthy = not problem
    try:
        models = await ask_models(caller)
    except FetchFailed as failure:
        return ProbeReport(url=endpoint.url, reachable=False, healthy=False, problem=str(failure))
    wanted = [name for name in upstreams if not models or name in models]
    absent = sorted(set(upstreams) - set(wanted))
    if healthy and absent:
        problem = f"the engine does not list {', '.join(absent)}"
    usage = {}
    if endpoint.usage == "auto":
        usage = {
            name: await probing(endpoint.url, partial(ask_usage, caller, name)) for name in wanted
        }
    return ProbeReport(
        url=endpoint.url,
        reachable=True,
        healthy=healthy,
        problem=problem,
        models=models,
        metrics=await ask_metrics(caller, endpoint.dialect) is not None,
        tokenize=bool(wanted) and await ask_tokenize(caller, wanted[0]),
        usage=usage,
    )


async def ask_health(caller: Caller, dialect: Dialect) -> str:
    """What is wrong with it, in one sentence; empty when it is well.

    An OpenAI-like endpoint has no health page: any answer but a 5xx shows that it is there.
    """
    path = HEALTH_PATHS[dialect]
    try:
        answer = await caller.get(path, HEALTH_TIMEOUT_S)
    except FetchFailed as failure:
        return str(failure)
    fine = answer.status < 500 if dialect == "openai" else 200 <= answer.status < 300  # noqa: PLR2004 -- HTTP classes
    return "" if fine else f"{path} answered {answer.status}"


async def ask_models(caller: Caller) -> dict[str, int | None]:
    """Name -> context in tokens. Empty where the list is not told; raises ``FetchFailed``."""
    answer = await caller.get("/v1/models", HEALTH_TIMEOUT_S)
    document = _json(answer.body)
    listed = document.get("data") if isinstance(document, dict) else None
    models: dict[str, int | None] = {}
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get("id"), str):
            length = each.get("max_model_len")
            models[each["id"]] = length if isinstance(length, int) and length > 0 else None
    return models


async def ask_metrics(caller: Caller, dialect: Dialect) -> Exposition | None:
    """One scrape; None where there are no metrics of a kind we know."""
    path = METRICS_PATHS[dialect]
    if path is None:
        return None
    try:
        answer = await caller.get(path, SCRAPE_TIMEOUT_S)
    except FetchFailed:
        return None
    seen = read(dialect, answer.body) if answer.status == 200 else Exposition()  # noqa: PLR2004 -- OK
    return None if seen == Exposition() else seen


async def ask_tokenize(caller: Caller, upstream: str) -> bool:
    """Whether it counts a prompt for us (vLLM's /tokenize). Costs no tokens."""
    try:
        answer = await caller.post(
            "/tokenize", {"model": upstream, "prompt": "hi"}, HEALTH_TIMEOUT_S
        )
    except FetchFailed:
        return False
    document = _json(answer.body)
    return isinstance(document, dict) and isinstance(document.get("count"), int)


async def ask_template(caller: Caller, upstream: str) -> int | None:
    """Tokens that the model's template adds to a prompt, beyond those its bytes account for.

    None where that is not to be had: no /tokenize, or a template that puts more around each message
    than the JSON there is long, so that bytes bound nothing. Costs no tokens.
    """
    counts = []
    for messages in TEMPLATE_QUESTIONS:
        counted = await _count_of(caller, {"model": upstream, "messages": messages})
        if counted is None:
            break
        counts.append(counted)
    if not counts:
        return await _count_of(caller, {"model": upstream, "prompt": "x"})
    if len(counts) < len(TEMPLATE_QUESTIONS):
        return None
    one, three = counts
    return one if three - one <= 2 * MESSAGE_JSON_BYTES else None


async def _count_of(caller: Caller, question: dict[str, object]) -> int | None:
    try:
        answer = await caller.post("/tokenize", question, HEALTH_TIMEOUT_S)
    except FetchFailed:
        return None
    document = _json(answer.body) if answer.status == 200 else None  # noqa: PLR2004 -- OK
    found = document.get("count") if isinstance(document, dict) else None
    return found if isinstance(found, int) and found > 0 else None


async def ask_usage(caller: Caller, upstream: str) -> UsageFound:
    """What its streams report, from a stream of one token. A 400 costs nothing at the engine."""
    operation: Operation = "chat"
    cap = "max_tokens"
    asks = list(ASKS)
    for _ in range(len(ASKS) + 2):  # at most: each way to ask, another cap, another operation
        try:
            answer = await caller.post(
                PATHS[operation], _question(operation, upstream, cap, asks[0]), USAGE_TIMEOUT_S
            )
        except FetchFailed:
            return UsageFound(None)
        if answer.status == 200:  # noqa: PLR2004 -- OK
            return _usage_in(answer.body)
        text = answer.body[:4096]
        if b"max_completion_tokens" in text and cap == "max_tokens" and answer.status == 400:  # noqa: PLR2004 -- Bad Request
            cap = "max_completion_tokens"  # OpenAI's newer models refuse the older name
        elif answer.status in (400, 422) and _names_options(text) and len(asks) > 1:
            del asks[0]
        elif answer.status in (400, 404, 405, 422) and operation == "chat":
            operation = "completions"  # a base model without a chat template
        else:
            break
    return UsageFound(None)


def _names_options(text: bytes) -> bool:
    return any(name in text for name in (b"stream_options", b"usage_stats", b"include_usage"))


def _question(operation: Operation, upstream: str, cap: str, ask: UsageMode) -> dict[str, object]:
    question: dict[str, object] = {"model": upstream, cap: 1, "stream": True}
    if operation == "chat":
        question["messages"] = [{"role": "user", "content": "hi"}]
    else:
        question["prompt"] = "hi"
    options = STREAM_OPTIONS[ask]
    return question if options is None else question | {"stream_options": options}


def _usage_in(stream: bytes) -> UsageFound:
    """Continuous: each event with a choice carries counts. Final: some event does. None: none."""
    counted = chunks = 0
    last: dict[str, Any] = {}
    for line in stream.splitlines():
        event = _json(line[5:]) if line.startswith(b"data:") else None
        if not isinstance(event, dict):
            continue
        usage = event.get("usage")
        if isinstance(usage, dict):
            last = usage
        if event.get("choices"):
            chunks += 1
            counted += isinstance(usage, dict)
    if not chunks:
        return UsageFound(None)
    mode: UsageMode = "none" if not last else "continuous" if counted == chunks else "final"
    # What nobody counted is still known to be one token of answer.
    return UsageFound(mode, _count(last, "prompt_tokens", 0), _count(last, "completion_tokens", 1))


def _count(usage: dict[str, Any], name: str, otherwise: int) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and value >= 0 else otherwise


def _json(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
