"""The counts of one request: tokens by kind, as the engine reports them.

``cached`` is part of ``prompt`` and ``reasoning`` part of ``completion`` (OpenAI's and vLLM's
convention). Not here: how counts are folded from a stream (``gateway.contract.usage``), and what
they cost (``quotas.pricing``).
"""

from collections.abc import Mapping

import msgspec


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens, all >= 0."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def meters(self) -> dict[str, int]:
        """The names that usage records carry."""
        return {
            "prompt_tokens": self.prompt,
            "cached_tokens": self.cached,
            "completion_tokens": self.completion,
            "reasoning_tokens": self.reasoning,
        }


def usage_from(meters: Mapping[str, int]) -> TokenUsage:
    """The inverse of ``TokenUsage.meters``; a missing meter is 0."""
    return TokenUsage(
        meters.get("prompt_tokens", 0),
        meters.get("cached_tokens", 0),
        meters.get("completion_tokens", 0),
        meters.get("reasoning_tokens", 0),
    )
