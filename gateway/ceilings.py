"""How many prompt tokens a request cannot exceed: what money is held for.

Text is bounded by its bytes, without a question, once the engines' template was probed. Until then, and
for what only the engine can render (tools, template arguments), its /tokenize counts; the rest is
bounded by the model's context. Where none of these is to be
had the request is refused, with the reason: an unbounded cost must not meet a balance. Not here: the
estimate that rates are reserved by (``quotas.estimate``).
"""

import contextlib

from gateway.contract.envelope import Envelope
from gateway.contract.errors import CostUnbounded, ModelNotPriced
from gateway.contract.prompts import question_for, text_only
from gateway.engine_counts import EngineCounts
from gateway.engines import Engines
from gateway.snapshot import Snapshot
from gateway.terms import Terms
from gateway.wire.fetch import FetchFailed
from quotas.estimate import TEMPLATE_TOKENS, ceiling
from routing.topology import Endpoint


class Ceilings:
    """One per data process."""

    def __init__(self, snapshot: Snapshot, engines: Engines, counts: EngineCounts) -> None:
        self._snapshot = snapshot
        self._engines = engines
        self._counts = counts

    async def of(
        self, terms: Terms, envelope: Envelope, body: bytes, context_tokens: int | None
    ) -> int:
        """Tokens of all prompts together. Raises ``CostUnbounded`` and ``ModelNotPriced``."""
        model = terms.model
        if terms.price is None:
            raise ModelNotPriced(model.name)
        pool = self._snapshot.pools.get(model.pool_id)
        counted: int | None = None
        plain = text_only(body, envelope)
        template_tokens = self._engines.template_of(model, pool)
        if template_tokens is None and envelope.operation != "chat":
            template_tokens = TEMPLATE_TOKENS  # no template: a token or two that begin a text
        if not plain or template_tokens is None:
            question = question_for(body, envelope, model.upstream)
            if question is not None:
                counted = await self._ask(question, pool.endpoints if pool else ())
        most = ceiling(
            prompts=envelope.prompts,
            text_bytes=len(body) if plain else None,
            template_tokens=template_tokens,
            context_tokens=context_tokens,
            counted=counted,
        )
        if most is None:
            raise CostUnbounded(
                "the engine does not tell what its template adds to the prompt"
                if plain
                else "its prompt is not plain text, the engine does not count it, and the model's "
                "context is not known",
                None if plain else "messages",
            )
        return most

    async def _ask(self, question: bytes, endpoints: tuple[Endpoint, ...]) -> int | None:
        """The first engine's count that is to be had, and something for what it leaves out."""
        for endpoint in filter(self._counts.may_ask, endpoints):
            with contextlib.suppress(FetchFailed):
                counted = await self._counts.ask(endpoint, question)
                if counted is not None:
                    return counted + TEMPLATE_TOKENS
        return None
