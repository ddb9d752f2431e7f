"""The engine's steps: every running choice gains one token a step, as in continuous batching.

Counts as vLLM does: a prompt once per choice, at its first step; a token when it is made; a success
when a choice finishes; nothing for what was aborted before its first step. Not here: HTTP.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator

from gateway.demo.asked import Asked
from gateway.demo.text import answer_length, story

BLOCK_TOKENS = 128
BLOCKS_MAX = 16_384
CACHE_TOKENS = BLOCK_TOKENS * BLOCKS_MAX


class Choice:
    """One answer in the making. ``shown`` is the text of the last step."""

    def __init__(self, index: int, prompt_tokens: int, words: Iterator[str]) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.made = 0
        self.shown = ""
        self.text = ""
        self.finish: str | None = None
        self.stop_reason: str | None = None
        self._words = words
        self._held = 0  # characters of the text not yet shown: a stop may begin there

    def advance(self, ends_at: int, cap: int, stops: tuple[str, ...]) -> None:
        shown_to = len(self.text) - self._held
        self.made += 1
        self.text += next(self._words)
        for stop in stops:
            at = self.text.find(stop, max(0, shown_to - len(stop)))
            if at >= 0:
                self.text = self.text[:at]
                self.finish, self.stop_reason = "stop", stop
        if self.finish is None and self.made >= min(cap, ends_at):
            self.finish = "stop" if ends_at <= cap else "length"
        longest = max(map(len, stops), default=1) - 1
        self._held = 0 if self.finish else min(longest, len(self.text) - shown_to)
        self.shown = self.text[shown_to : len(self.text) - self._held]


class Generation:
    """All choices of one request. ``on_step`` runs after each step with those that advanced."""

    def __init__(
        self, asked: Asked, seed: int, lengths: tuple[int, int] | None, caching: "PrefixCache"
    ) -> None:
        self.asked = asked
        self.on_step: Callable[[list[Choice]], None] = lambda _choices: None
        self.choices: list[Choice] = []
        self.cached = self.created = 0
        self.steps = 0
        self._ends: list[int] = []
        seed = seed if asked.seed is None else asked.seed
        for ids in asked.prompts:
            cached, created = caching.look(ids, asked.salt)
            self.cached += cached
            self.created += created
            for number in range(asked.n):
                index = len(self.choices)
                self.choices.append(Choice(index, len(ids), story(seed, ids, number)))
                if lengths is None or asked.ignore_eos:
                    self._ends.append(asked.cap + 1)
                else:
                    self._ends.append(answer_length(seed, ids, number, *lengths))

    @property
    def tokens(self) -> int:
        return sum(choice.made for choice in self.choices)

    @property
    def prompt_tokens(self) -> int:
        """Once per prompt, as usage tells it."""
        return sum(map(len, self.asked.prompts))

    @property
    def finished(self) -> bool:
        return all(choice.finish for choice in self.choices)

    def advance(self) -> list[Choice]:
        asked = self.asked
        self.steps += 1
        moved = [choice for choice in self.choices if not choice.finish]
        for choice in moved:
            choice.advance(self._ends[choice.index], asked.cap, asked.stops)
        return moved


class PrefixCache:
    """Which leading blocks of prompts were seen, per salt; the oldest are forgotten."""

    def __init__(self) -> None:
        self._blocks: dict[int, None] = {}
        self.queries = self.hits = 0

    def look(self, ids: list[int], salt: str) -> tuple[int, int]:
        """(cached, newly kept) tokens; the last token is always computed."""
        key = hash(salt)
        cached = created = 0
        usable = (len(ids) - 1) // BLOCK_TOKENS
        for block in range(len(ids) // BLOCK_TOKENS):
            at = block * BLOCK_TOKENS
            key = hash((key, *ids[at : at + BLOCK_TOKENS]))
            if key in self._blocks and created == 0 and block < usable:
                cached += BLOCK_TOKENS
            elif key not in self._blocks:
                created += BLOCK_TOKENS
            self._blocks[key] = None
        while len(self._blocks) > BLOCKS_MAX:
            del self._blocks[next(iter(self._blocks))]
        self.queries += len(ids)
        self.hits += cached
        return cached, created


class Batch:
    """Running and waiting generations. ``step_s`` 0: as fast as the loop turns."""

    def __init__(self, step_s: float, sequences_max: int) -> None:
        self.counters: Counter[str] = Counter()
        self.successes: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self._step_s = step_s
        self._sequences_max = sequences_max
        self._running: dict[Generation, None] = {}  # in the order of admission
        self._waiting: deque[Generation] = deque()
        self._timer: asyncio.Handle | None = None
        self._due_s = 0.0

    @property
    def running(self) -> int:
        """Choices in the batch: vLLM counts each as a request."""
        return sum(len(each.choices) for each in self._running)

    @property
    def waiting(self) -> int:
        return sum(len(each.choices) for each in self._waiting)

    @property
    def cache_usage(self) -> float:
        held = sum(each.prompt_tokens + each.tokens for each in self._running)
        return min(1.0, held / CACHE_TOKENS)

    def add(self, generation: Generation) -> None:
        self._waiting.append(generation)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._due_s = loop.time() + self._step_s
            self._timer = loop.call_at(self._due_s, self._step)

    def abort(self, generation: Generation) -> None:
        """It makes no further token; what it made stays counted."""
        if generation in self._running:
            del self._running[generation]
        elif generation in self._waiting:
            self._waiting.remove(generation)

    def close(self) -> None:
        self._running.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        self._timer = None
        self._admit()
        for generation in tuple(self._running):
            if generation not in self._running:
                continue  # aborted by what another's step set off
            first = generation.steps == 0
            moved = generation.advance()
            if first:
                self.counters["prompt_tokens"] += sum(each.prompt_tokens for each in moved)
            self.counters["generation_tokens"] += len(moved)
            for choice in moved:
                if choice.finish:
                    self.successes[choice.finish] += 1
            if generation.finished:
                del self._running[generation]
            generation.on_step(moved)
        if self._running or self._waiting:
            loop = asyncio.get_running_loop()
            self._due_s = max(self._due_s + self._step_s, loop.time())
            self._timer = loop.call_at(self._due_s, self._step)

    def _admit(self) -> None:
        if not self._waiting:
            return
        room = self._sequences_max - self.running
        while self._waiting and (len(self._waiting[0].choices) <= room or not self._running):
            generation = self._waiting.popleft()
            room -= len(generation.choices)
            self._running[generation] = None
