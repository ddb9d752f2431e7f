"""One generation of the demo engine: every choice of every prompt, a token a step."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from gateway.demo.answer import Answer
from gateway.demo.text import words
from gateway.demo.works import LogEntry, Works

#: Answers of different prompts differ in length by up to this.
SPREAD_TOKENS = 60


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
        self._cap = max(1, cap)
        self._finish_reason = "length"
        if engine.answer_tokens is not None and not request.get("ignore_eos"):
            own = engine.answer_tokens + sum(prompts) % SPREAD_TOKENS
            if own < self._cap:
                self._cap, self._finish_reason = own, "stop"
        self._chat = chat
        options = request.get("stream_options") or {}
        self._usage_asked = bool(options.get("include_usage")) and not engine.faults.no_usage
        self._usage_always = self._usage_asked and bool(options.get("continuous_usage_stats"))
        self._shell = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{entry.request_id or 'demo'}",
            "object": "",
            "created": int(time.time()),
            "model": engine.model,
        }
        seed = request.get("seed", 0)
        self._texts = [words(f"{seed}:{index}") for index in range(len(prompts) * self.n)]

    async def whole(self, answer: Answer, leaving: "asyncio.Future[None]") -> None:
        said = [""] * len(self._texts)
        for _ in range(self._cap):
            if not await self._engine.step(leaving):
                self._abort(answer)
                return
            for index, text in enumerate(self._texts):
                said[index] += next(text)
                self._made()
        self._engine.finished += 1
        body = {
            **self._shell,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._whole_choice(index, text) for index, text in enumerate(said)],
            "service_tier": None,
            "system_fingerprint": "demo",
        }
        if not self._engine.faults.no_usage:
            body["usage"] = self._total()
        answer.send(200, body)

    async def stream(self, answer: Answer, leaving: "asyncio.Future[None]") -> None:
        faults = self._engine.faults
        answer.start()
        if faults.error_event_first:
            kind = "InternalServerError"
            answer.event({"error": {"message": "on purpose", "type": kind, "code": 500}})
            answer.done()
            return
        for frames, (event, of_step) in enumerate(self._events()):
            if of_step == 0 and not await self._engine.step(leaving):
                self._abort(answer)
                return
            if frames == faults.die_after_frames:
                answer.die()
                return
            if frames == faults.stall_after_frames:
                await asyncio.wait((leaving,))
                self._abort(answer)
                return
            if of_step >= 0:
                self._made()
            answer.event(event)
            await answer.drain()
        self._engine.finished += 1
        answer.done()

    def _events(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each chunk, and which token of a step of the engine it carries, from 0; -1: none."""
        if self._chat:
            for index in range(len(self._texts)):
                yield self._chunk(index, {"role": "assistant", "content": ""}, 0), -1
        for token in range(1, self._cap + 1):
            for index, text in enumerate(self._texts):
                yield self._chunk(index, {"content": next(text)}, token), index
        if self._usage_asked:
            yield {**self._shell_of_chunk(), "choices": [], "usage": self._total()}, -1

    def _chunk(self, index: int, delta: dict[str, str], made: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta["content"]
        finish = self._finish_reason if made == self._cap else None
        choice |= {"logprobs": None, "finish_reason": finish}
        chunk = {**self._shell_of_chunk(), "choices": [choice]}
        if self._usage_always:
            prompt = self._prompts[index // self.n]
            chunk["usage"] = {
                "prompt_tokens": prompt,
                "total_tokens": prompt + made,
                "completion_tokens": made,
            }
        return chunk

    def _shell_of_chunk(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._shell, "object": kind}

    def _whole_choice(self, index: int, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return choice | {
            "logprobs": None,
            "finish_reason": self._finish_reason,
            "stop_reason": None,
        }

    def _total(self) -> dict[str, Any]:
        prompt, completion = sum(self._prompts), self._cap * len(self._texts)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def _abort(self, answer: Answer) -> None:
        self._entry.ended = "aborted"
        answer.dead = True

    def _made(self) -> None:
        self._entry.tokens += 1
        self._engine.generation_tokens += 1
