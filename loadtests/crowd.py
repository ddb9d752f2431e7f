"""Clients of every kind at once, and each one's note of what it got.

Requests carry their number in the prompt, so that what engines saw is found again even where no
answer came. Each has a connection of its own: the kernel spreads them over the data processes.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import httpx

from gateway.demo.works import LogEntry
from loadtests.checker import Noted, Witnessed

MODEL = "llama"
TIMEOUT_S = 30.0
#: Kind -> share. Those with "leave" go away in the middle of it.
KINDS = {
    "unary": 3, "unary-n3": 1, "stream": 4, "stream-usage": 2, "stream-n2": 2, "stream-leave": 3,
    "stream-n2-leave": 1, "unary-leave": 1, "text-two": 1, "text-two-n2-stream": 1,
    "text-two-n2-stream-leave": 1, "embed": 1, "refused": 1,
}  # fmt: skip


class Crowd:
    """``rate`` requests a second in all, over at most ``workers`` at once, each under one of
    ``secrets``.
    """

    def __init__(
        self, base_url: str, secrets: Sequence[str], *, rate: float, workers: int, seed: int
    ) -> None:
        self.base_url = base_url
        self.notes: dict[int, Noted] = {}
        self.refused = Counter[int]()  # status -> answers without an engine's work
        self.away = 0  # connections that nobody took
        self.answered = asyncio.Event()  # set by each whole answer
        self._secrets = secrets
        self._gap_s = 1 / rate
        self._workers = workers
        self._chance = random.Random(seed)
        self._stopping = False
        self._number = 0
        self._next_s = 0.0

    @property
    def sent(self) -> int:
        return len(self.notes)

    def stop(self) -> None:
        """Requests on their way are finished."""
        self._stopping = True

    async def run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.base_url, timeout=TIMEOUT_S, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._work(client) for _ in range(self._workers)))

    async def _work(self, client: httpx.AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        kinds, shares = list(KINDS), list(KINDS.values())
        while not self._stopping:
            self._next_s = max(self._next_s + self._gap_s, loop.time() - 1)
            await asyncio.sleep(self._next_s - loop.time())
            kind = self._chance.choices(kinds, shares)[0]
            await self.one(client, kind, self._chance.choice(self._secrets))

    async def one(self, client: httpx.AsyncClient, kind: str, secret: str) -> Noted | None:
        """One request; None where no connection was to be had, and nothing was sent."""
        self._number += 1
        note = Noted(number=self._number, kind=kind)
        path, body = _request(note.number, kind, self._chance)
        leave_after = self._chance.randrange(8) if "leave" in kind else None
        headers = {"authorization": f"Bearer {secret}"}
        self.notes[note.number] = note
        timeout = httpx.Timeout(TIMEOUT_S)
        if kind == "unary-leave":
            timeout = httpx.Timeout(TIMEOUT_S, read=self._chance.uniform(0.01, 0.08))
        # Broken off by either side: what was noted until then stands.
        with contextlib.suppress(httpx.HTTPError):
            try:
                async with client.stream(
                    "POST", path, json=body, headers=headers, timeout=timeout
                ) as response:
                    await self._listen(note, response, leave_after)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                del self.notes[note.number]
                self.away += 1
                await asyncio.sleep(0.05)
                return None
        if note.status >= 400:
            self.refused[note.status] += 1
        if note.whole:
            self.answered.set()
        return note

    async def _listen(self, note: Noted, response: httpx.Response, leave_after: int | None) -> None:
        note.status = response.status_code
        note.request_id = response.headers.get("x-request-id", "")
        if note.status != 200:
            await response.aread()
            return
        if not response.headers["content-type"].startswith("text/event-stream"):
            _note_whole(note, json.loads(await response.aread()))
            return
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                note.whole = True
            elif line.startswith("data: "):
                _note_event(note, json.loads(line[6:]))
            if leave_after is not None and note.received > leave_after:
                return


def _request(number: int, kind: str, chance: random.Random) -> tuple[str, dict]:
    said = f"request {number} " + "and a word " * chance.randrange(12)
    body: dict = {"model": MODEL, "max_tokens": chance.randrange(1, 24), "seed": number}
    if "leave" in kind:
        body["max_tokens"] = 40
    if "stream" in kind:
        body["stream"] = True
    if kind == "stream-usage":
        body["stream_options"] = {"include_usage": True}
    if "-n" in kind:
        body["n"] = int(kind.partition("-n")[2][0])
    if kind == "refused":
        body["temperature"] = -1
    if kind == "embed":
        return "/embeddings", {"model": MODEL, "input": [said, "another"]}
    if kind.startswith("text"):
        return "/completions", body | {"prompt": [said, "another prompt of another length"]}
    return "/chat/completions", body | {"messages": [{"role": "user", "content": said}]}


def _note_whole(note: Noted, answer: dict) -> None:
    usage = answer["usage"]
    note.told = (usage["prompt_tokens"], usage.get("completion_tokens", 0))
    note.received = note.told[1]
    note.whole = True


def _note_event(note: Noted, event: dict) -> None:
    for choice in event.get("choices", ()):
        text = choice.get("delta", {}).get("content") or choice.get("text")
        note.received += bool(text)
    usage = event.get("usage")
    if usage and not event.get("choices"):
        note.told = (usage["prompt_tokens"], usage["completion_tokens"])


def witnessed(url: str, log: Iterable[LogEntry]) -> list[Witnessed]:
    """An engine's log of our requests; probes carry no number. ``url``: as the gateway knows it."""
    found = []
    for entry in log:
        head, mark, rest = entry.body.partition(b"request ")
        if not mark:
            continue
        body = json.loads(head + mark + rest)
        prompts = body.get("prompt", body.get("input"))
        found.append(
            Witnessed(
                number=int(rest.split(b" ", 1)[0]),
                request_id=entry.request_id,
                endpoint=url,
                prompts=len(prompts) if isinstance(prompts, list) else 1,
                choices=entry.choices,
                prompt_tokens=entry.prompt_tokens,
                tokens=entry.tokens,
                ended=entry.ended,
            )
        )
    return found
