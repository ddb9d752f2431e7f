"""One generation of the demo engine: every choice of every prompt, a token a step.

Not here: what the objects look like (``shapes``), how fast steps go (``works``).
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from gateway.demo import shapes
from gateway.demo.answer import Answer
from gateway.demo.text import words
from gateway.demo.works import LogEntry, Works

#: Answers of different prompts differ in length by up to this.
SPREAD_TOKENS = 60


class Choice:
    """One answer in the making. ``finish``: None until its last token was made."""

    def __init__(self, index: int, seed: str, cap: int, finish: str, stops: list[str]) -> None:
        self.index = index
        self.text = ""
        self.made = 0
        self.finish: str | None = None
        self.stop_reason: str | None = None
        self._words = words(seed)
        self._cap = cap
        self._finish_at_cap = finish
        self._stops = stops

    def step(self) -> str:
        """Make one token; its text, less what a stop string takes away."""
        had = len(self.text)
        self.text += next(self._words)
        self.made += 1
        if self.made >= self._cap:
            self.finish = self._finish_at_cap
        found = [(self.text.find(stop), stop) for stop in self._stops if stop in self.text]
        if found:
            at, self.stop_reason = min(found)
            self.text, self.finish = self.text[:at], "stop"
        return self.text[had:]


class Job:
    """``n``: choices per prompt. Index // n is the prompt, as in vLLM."""

    def __init__(
        self,
        engine: Works,
        entry: LogEntry,
        request: dict[str, Any],
        prompts: list[int],
        cap: int,
        *,
        chat: bool,
    ) -> None:
        self._engine = engine
        self._entry = entry
        self._prompts = prompts
        self.n = int(request.get("n") or 1)
        self._chat = chat
        options = request.get("stream_options") or {}
        self._usage_asked = bool(options.get("include_usage")) and not engine.faults.no_usage
        self._usage_always = self._usage_asked and bool(options.get("continuous_usage_stats"))
        self._began = shapes.head(
            entry.request_id,
            int(time.time()),
            engine.model,
            chat=chat,
            stream=bool(request.get("stream")),
        )
        cap, finish = max(1, cap), "length"
        if engine.answer_tokens is not None and not request.get("ignore_eos"):
            own = engine.answer_tokens + sum(prompts) % SPREAD_TOKENS
            if own < cap:
                cap, finish = own, "stop"
        seed, stop = request.get("seed", 0), request.get("stop")
        stops = [stop] if isinstance(stop, str) else stop or []
        self._choices = [
            Choice(index, f"{seed}:{index}", cap, finish, stops)
            for index in range(len(prompts) * self.n)
        ]

    async def whole(self, answer: Answer, leaving: "asyncio.Future[None]") -> None:
        while any(choice.finish is None for choice in self._choices):
            if not await self._engine.step(leaving):
                self._abort(answer)
                return
            for choice in self._choices:
                if choice.finish is None:
                    choice.step()
                    self._made()
        self._engine.finished += 1
        usage = None
        if not self._engine.faults.no_usage:
            usage = shapes.whole_usage(sum(self._prompts), self._completion(), chat=self._chat)
        told = [
            shapes.Told(choice.index, choice.text, choice.finish, choice.stop_reason)
            for choice in self._choices
        ]
        answer.send(200, shapes.whole(self._began, told, usage, chat=self._chat))

    async def stream(self, answer: Answer, leaving: "asyncio.Future[None]") -> None:
        faults = self._engine.faults
        answer.start()
        if faults.error_event_first:
            kind = "InternalServerError"
            answer.event({"error": {"message": "on purpose", "type": kind, "code": 500}})
            answer.done()
            return
        for frames, (event, first_of_step) in enumerate(self._events()):
            if first_of_step and not await self._engine.step(leaving):
                self._abort(answer)
                return
            if frames == faults.die_after_frames:
                answer.die()
                return
            if frames == faults.stall_after_frames:
                await asyncio.wait((leaving,))
                self._abort(answer)
                return
            answer.event(event)
            await answer.drain()
        self._engine.finished += 1
        answer.done()

    def _events(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each chunk, and whether a step of the engine comes before it."""
        if self._chat:
            for choice in self._choices:
                yield shapes.role_chunk(self._began, choice.index, self._usage_of(choice)), False
        while open_ones := [choice for choice in self._choices if choice.finish is None]:
            for at, choice in enumerate(open_ones):
                text = choice.step()
                told = shapes.Told(choice.index, text, choice.finish, choice.stop_reason)
                chunk = shapes.token_chunk(
                    self._began,
                    told,
                    self._usage_of(choice),
                    chat=self._chat,
                    sign=not self._usage_asked,
                )
                yield chunk, at == 0
                self._made()
        if self._usage_asked:
            prompt, completion = sum(self._prompts), self._completion()
            yield shapes.final_chunk(self._began, prompt, completion, chat=self._chat), False

    def _usage_of(self, choice: Choice) -> dict[str, Any] | None:
        if not self._usage_always:
            return None
        prompt = self._prompts[choice.index // self.n]
        return shapes.running_usage(prompt, choice.made, chat=self._chat)

    def _completion(self) -> int:
        return sum(choice.made for choice in self._choices)

    def _abort(self, answer: Answer) -> None:
        self._entry.ended = "aborted"
        answer.dead = True

    def _made(self) -> None:
        self._entry.tokens += 1
        self._engine.generation_tokens += 1
