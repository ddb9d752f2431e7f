"""Counts that an engine did not give, asked of its /tokenize after the end, off the client's way.

Asked of the endpoint that served, for two seconds at most and few at once; who is not asked, or does
not answer, leaves the estimate standing. Not here: the asking itself (``gateway.engine_counts``), what
the questions are (``contract.questions``), what is billed (``quotas.settlement``).
"""

import asyncio

from gateway.call import Call
from gateway.contract import questions
from gateway.contract.questions import Questions
from gateway.contract.transcript import Transcript
from gateway.engine_counts import ASK_S, EngineCounts
from gateway.engines import Engine, Engines
from gateway.telemetry.counters import Counters
from gateway.wire.fetch import FetchFailed

#: At once, of one process: leaving early for ever must not become work for the engines.
ASKS_MAX = 16


class Counted:
    """What was found out; None stays where nothing was."""

    __slots__ = ("completion", "prompt")

    def __init__(self) -> None:
        self.prompt: int | None = None
        self.completion: int | None = None


class Recount:
    """One per data process."""

    def __init__(self, engines: Engines, counts: EngineCounts, counters: Counters) -> None:
        self._engines = engines
        self._counts = counts
        self._counters = counters
        self._asking = 0

    def may_ask(self, call: Call) -> Engine | None:
        """The engine to ask about an ended call, where it is known to count and there is a place."""
        exchange = call.exchange
        if exchange is None or not exchange.attempts or call.envelope is None:
            return None
        if self._asking >= ASKS_MAX:
            self._counters.add("tf_recounts_total", "busy")
            return None
        engine = self._engines.find(exchange.attempts[-1].endpoint_id)
        return engine if engine is not None and self._counts.may_ask(engine.endpoint) else None

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
            count = await self._counts.ask(engine.endpoint, body)
            if count is None:
                return None
            total += count
        return total
