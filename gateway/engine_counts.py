"""Prompts and answers counted by an engine's own tokenizer: its /tokenize, asked by a data process.

Engines of which it is known that they have none, are ill, or refused it a moment ago are not asked.
What is asked is somebody's text: it is held no longer than that, and none of it is logged or stored.
Not here: what the questions are (``contract.questions``, ``contract.prompts``), who wants to know.
"""

from collections.abc import Awaitable, Callable

from gateway.contract import questions
from gateway.engines import Engines
from gateway.wire.dial import parse_endpoint
from gateway.wire.fetch import Fetched
from routing.topology import Endpoint

ASK_S = 2.0
#: An endpoint without /tokenize is not asked again for this long.
LATER_S = 60.0
#: A count comes with every token's number: some 7 bytes each.
ANSWER_BYTES_MAX = 16 << 20
DIALECTS = frozenset(("vllm", "nim"))
REFUSALS = frozenset((401, 403, 404, 405, 501))

Fetch = Callable[..., Awaitable[Fetched]]


class EngineCounts:
    """One per data process. ``fetch`` is ``gateway.wire.fetch.fetch``; ``monotonic`` in seconds."""

    def __init__(self, engines: Engines, fetch: Fetch, monotonic: Callable[[], float]) -> None:
        self._engines = engines
        self._fetch = fetch
        self._monotonic = monotonic
        self._not_before_s: dict[int, float] = {}

    def may_ask(self, endpoint: Endpoint) -> bool:
        if endpoint.dialect not in DIALECTS:
            return False
        signals = self._engines.signals.get(endpoint.id)
        if signals is not None and signals.healthy is False:
            return False
        return self._not_before_s.get(endpoint.id, 0.0) <= self._monotonic()

    async def ask(self, endpoint: Endpoint, question: bytes) -> int | None:
        """Tokens; None where it answered anything else. Raises ``FetchFailed``."""
        found = await self._fetch(
            parse_endpoint(endpoint.url),
            "POST",
            "/tokenize",
            headers=self._engines.headers_for(endpoint),
            body=question,
            timeout_s=ASK_S,
            max_bytes=ANSWER_BYTES_MAX,
            ca_file=endpoint.ca_file,
        )
        if found.status in REFUSALS:
            self._not_before_s[endpoint.id] = self._monotonic() + LATER_S
        return questions.count_in(found.body) if found.status == 200 else None  # noqa: PLR2004 -- OK
