"""Counts that an engine did not give, asked of its /tokenize after the end, off the client's way.

Asked of the endpoint that served, with its own credential, for two seconds at most and few at once;
who is not asked, or does not answer, leaves the estimate standing. What is asked is the caller's text
and the model's: it is held no longer than that, and none of it is logged or stored.
Not here: what the questions are (``contract.questions``), what is billed (``quotas.settlement``).
"""

import asyncio
from collections.abc import Awaitable, Callable

from gateway.call import Call
from gateway.contract import questions
from gateway.contract.questions import Questions
from gateway.contract.transcript import Transcript
from gateway.engines import Engine, Engines
from gateway.telemetry.counters import Counters
from gateway.wire.dial import parse_endpoint
from gateway.wire.fetch import Fetched, FetchFailed

ASK_S = 2.0
#: At once, of one process: leaving early for ever must not become work for the engines.
ASKS_MAX = 16
#: An endpoint without /tokenize is not asked again for this long.
LATER_S = 60.0
ANSWER_BYTES_MAX = 16 << 20  # it repeats every token
DIALECTS = frozenset(("vllm", "nim"))
REFUSALS = frozenset((401, 403, 404, 405, 501))

Fetch = Callable[..., Awaitable[Fetched]]


class Counted:
    """What was found out; None stays where nothing was."""

    __slots__ = ("completion", "prompt")

    def __init__(self) -> None:
        self.prompt: int | None = None
        self.completion: int | None = None


class Recount:
    """One per data process. ``monotonic`` in seconds."""

    def __init__(
        self,
        engines: Engines,
        fetch: Fetch,
        counters: Counters,
        monotonic: Callable[[], float],
    ) -> None:
        self._engines = engines
        self._fetch = fetch
        self._counters = counters
        self._monotonic = monotonic
        self._asking = 0
        self._not_before_s: dict[int, float] = {}

    def may_ask(self, call: Call) -> Engine | None:
        """The engine to ask about an ended call, where it is known to count and there is a place."""
        exchange = call.exchange
        if exchange is None or not exchange.attempts or call.envelope is None:
            return None
        if self._asking >= ASKS_MAX:
            self._counters.add("tf_recounts_total", "busy")
            return None
        endpoint_id = exchange.attempts[-1].endpoint_id
        engine = self._engines.find(endpoint_id)
        if engine is None or engine.endpoint.dialect not in DIALECTS:
            return None
        if self._not_before_s.get(endpoint_id, 0.0) > self._monotonic():
            return None
        return engine

    async def ask(self, call: Call, engine: Engine, counted: Counted) -> None:
        """Into ``counted`` what was found out within ``ASK_S``; an engine's failure is no error."""
        self._asking += 1
        try:
            async with asyncio.timeout(ASK_S):
                await self._ask(call, engine, counted)
        except (TimeoutError, FetchFailed):
            pass
        finally:
            self._asking -= 1
        found = counted.prompt is not None or counted.completion is not None
        self._counters.add("tf_recounts_total", "counted" if found else "failed")

    async def _ask(self, call: Call, engine: Engine, counted: Counted) -> None:
        """The prompt first: it is what an ending without tokens bills."""
        exchange, envelope = call.exchange, call.envelope
        assert exchange is not None
        assert envelope is not None
        fold, upstream = exchange.fold, exchange.model.upstream
        if fold.prompt is None:
            asked = questions.of_prompt(call.request.body, envelope, upstream)
            counted.prompt = await self._count(engine, asked)
        if exchange.delivered and fold.completion is None and isinstance(fold, Transcript):
            asked = questions.of_texts(fold.said(), upstream)
            counted.completion = await self._count(engine, asked)

    async def _count(self, engine: Engine, asked: Questions | None) -> int | None:
        """The sum over all questions; None when one of them has no answer."""
        if asked is None:
            return None
        total = asked.known
        for body in asked.bodies:
            count = await self._count_one(engine, body)
            if count is None:
                return None
            total += count
        return total

    async def _count_one(self, engine: Engine, body: bytes) -> int | None:
        endpoint = engine.endpoint
        headers = [(b"content-type", b"application/json")]
        if engine.credential is not None:
            headers.append((b"authorization", b"Bearer " + engine.credential))
        found = await self._fetch(
            parse_endpoint(endpoint.url),
            "POST",
            "/tokenize",
            headers=headers,
            body=body,
            timeout_s=ASK_S,
            max_bytes=ANSWER_BYTES_MAX,
            ca_file=endpoint.ca_file,
        )
        if found.status in REFUSALS:
            self._not_before_s[endpoint.id] = self._monotonic() + LATER_S
        return questions.count_in(found.body) if found.status == 200 else None  # noqa: PLR2004 -- OK
