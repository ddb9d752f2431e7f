"""The works of the demo engine: its pace, its counters, and what goes wrong on purpose.

What one generation (``job``) needs of its engine. Not here: HTTP, prompts, answers.
"""

import asyncio

import msgspec

Headers = list[tuple[bytes, bytes]]


class Faults(msgspec.Struct):
    """What goes wrong, at run time. ``status``: answer this to inference. ``delay_s``: before the
    first byte. ``error_event_first``: an error event in a 200, then [DONE].
    """

    status: int = 0
    die_after_frames: int = -1
    stall_after_frames: int = -1
    refuse_continuous_usage: bool = False
    no_usage: bool = False
    no_tokenize: bool = False
    tokenize_delay_s: float = 0.0
    delay_s: float = 0.0
    error_event_first: bool = False


class LogEntry(msgspec.Struct):
    """One request as the engine saw it. ``ended``: finished, aborted, or refused.

    ``prompt_tokens`` of all its prompts, each counted once; ``tokens`` made for it, each before it
    is written to the socket; ``choices`` a prompt.
    """

    path: str
    headers: Headers
    body: bytes
    request_id: str = ""
    prompt_tokens: int = 0
    choices: int = 1
    tokens: int = 0
    ended: str = ""
    ended_s: float = 0.0


class Works:
    """Mutable counters: a prompt counts once a choice, as vLLM's own counter does."""

    def __init__(
        self, model: str, token_ms: float, answer_tokens: int | None, faults: Faults | None
    ) -> None:
        self.model = model
        self.answer_tokens = answer_tokens
        self.faults = faults or Faults()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = 0
        self.running = 0
        self.scrapes = 0  # of its metrics, answered
        self._step_s = token_ms / 1000

    async def step(self, leaving: "asyncio.Future[None]") -> bool:
        """Wait one token's time; False when the client has left."""
        if self._step_s:
            await asyncio.wait((leaving,), timeout=self._step_s)
        else:
            await asyncio.sleep(0)
        return not leaving.done()
