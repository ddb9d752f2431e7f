"""``GET /admin/v1/explain``: asked of every data process, since levels and refusals live there.

With a shared store any of them knows every level; the refusals are each one's own, and are joined.
Not here: what is said (``gateway.explain``).
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.link.messages import Explain, Explained
from gateway.link.server import LinkServer, Peer
from gateway.refusals import RECENT_MAX
from gateway.snapshot import Snapshot

EXPLAIN_S = 1.0


class NoProcess(Exception):
    """No data process answered: levels are not known."""


class UnknownSubject(Exception):
    """No such key or model."""


class Explanations:
    """One per control process. ``link`` is asked; ``on_explained`` is its handler."""

    def __init__(self, snapshot: Snapshot, link: LinkServer, timeout_s: float = EXPLAIN_S) -> None:
        self._snapshot = snapshot
        self._link = link
        self._timeout_s = timeout_s
        self._number = 0
        self._waiting: dict[int, Callable[[Peer, bytes], None]] = {}

    async def explain(
        self, key: str, model: str, input_tokens: int, output_tokens: int
    ) -> dict[str, object]:
        """Raises ``UnknownSubject`` and ``NoProcess``."""
        key_id = next((each.id for each in self._snapshot.keys.values() if each.path == key), None)
        found = self._snapshot.model_by_name.get(model)
        if key_id is None or found is None:
            raise UnknownSubject(f"no key {key}" if key_id is None else f"no model {model}")
        answers = await self._ask(key_id, found.id, input_tokens, output_tokens)
        if not answers:
            raise NoProcess("no data process answered; is one running, and its store reachable?")
        _join_leases(answers)
        refusals = [each for said in answers for each in said["refusals"]]
        refusals.sort(key=lambda each: each["at_ms"], reverse=True)
        return {
            "key": key,
            "model": model,
            "request": {"input_tokens": input_tokens, "output_tokens": output_tokens},
            **answers[0],
            "refusals": refusals[:RECENT_MAX],
        }

    def on_explained(self, peer: Peer, body: bytes) -> None:
        """A data process's answer; one that comes late is nobody's."""
        said = msgspec.msgpack.decode(body, type=Explained)
        waiting = self._waiting.get(said.number)
        if waiting is not None:
            waiting(peer, said.body)

    async def _ask(
        self, key_id: int, model_id: int, input_tokens: int, output_tokens: int
    ) -> list[dict[str, Any]]:
        peers = {peer for peer in self._link.peers if peer.hello is not None}
        answers: list[dict[str, Any]] = []
        all_in = asyncio.Event()

        def take(peer: Peer, body: bytes) -> None:
            peers.discard(peer)
            if body:
                answers.append(msgspec.json.decode(body))
            if not peers:
                all_in.set()

        if not peers:
            return []
        self._number += 1
        number = self._number
        self._waiting[number] = take
        try:
            question = Explain(number, key_id, model_id, input_tokens, output_tokens)
            self._link.broadcast("explain", msgspec.msgpack.encode(question))
            async with asyncio.timeout(self._timeout_s):
                await all_in.wait()
        except TimeoutError:
            pass  # those that answered are enough
        finally:
            del self._waiting[number]
        return answers


def _join_leases(answers: list[dict[str, Any]]) -> None:
    """Each process knows its own leases: the first answer gets those of all."""
    first, *others = answers
    rows = {(row["scope"], row["name"]): row for row in first["limits"] if "leases" in row}
    for said in others:
        for row in said["limits"]:
            into = rows.get((row["scope"], row["name"]))
            if into is not None:
                into["leases"] += row.get("leases", [])
