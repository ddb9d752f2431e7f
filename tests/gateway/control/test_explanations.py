"""Every data process is asked; what any of them says of levels stands, and refusals are joined."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.control.explanations import Explanations, NoProcess, UnknownSubject
from gateway.link.messages import Explain, Explained, Hello
from gateway.snapshot import KeyDoc, ModelDoc, Snapshot

SNAPSHOT = Snapshot()
SNAPSHOT.keys[3] = KeyDoc(id=3, project_id=2, name="ci", path="acme/bot/ci", secrets=())
SNAPSHOT.model_by_name["llama"] = ModelDoc(id=7, name="llama", upstream="llama", pool_id=1)


LIMIT = {"scope": "tenant acme", "name": "tokens per minute"}


class Peer:
    def __init__(self, said: dict[str, Any] | None) -> None:
        self.hello = Hello(0, 1, 1)
        self.said = said


class Link:
    """Peers that answer in the next turn of the loop; None never does."""

    def __init__(self, *said: dict[str, Any] | None) -> None:
        self.peers = {Peer(each) for each in said}
        self.asked: list[Explain] = []
        self.explanations = Explanations(SNAPSHOT, self, timeout_s=0.05)  # type: ignore[arg-type]

    def broadcast(self, kind: str, body: bytes) -> None:
        assert kind == "explain"
        question = msgspec.msgpack.decode(body, type=Explain)
        self.asked.append(question)
        for peer in self.peers:
            if peer.said is not None:
                said = msgspec.json.encode(peer.said) if peer.said else b""
                answer = msgspec.msgpack.encode(Explained(question.number, said))
                asyncio.get_running_loop().call_soon(
                    self.explanations.on_explained,
                    peer,
                    answer,  # type: ignore[arg-type]
                )

    async def explain(self) -> dict[str, Any]:
        return await self.explanations.explain("acme/bot/ci", "llama", 600, 400)


def said(*at_ms: int) -> dict[str, Any]:
    return {"limits": [LIMIT], "refusals": [{"at_ms": at} for at in at_ms]}


async def test_levels_come_from_one_and_refusals_from_all_newest_first() -> None:
    link = Link(said(5, 1), said(9))
    found = await link.explain()
    assert found["request"] == {"input_tokens": 600, "output_tokens": 400}
    assert found["limits"] == [LIMIT]
    assert [each["at_ms"] for each in found["refusals"]] == [9, 5, 1]
    assert (link.asked[0].key_id, link.asked[0].model_id) == (3, 7)


async def test_each_process_tells_its_own_leases() -> None:
    def leased(process: str) -> dict[str, Any]:
        return {**LIMIT, "leases": [{"process": process, "unspent": 7, "out": 1}]}

    link = Link(*({"limits": [leased(name)], "refusals": []} for name in "ab"))
    found = await link.explain()
    assert {each["process"] for each in found["limits"][0]["leases"]} == {"a", "b"}


async def test_a_process_that_does_not_answer_is_not_waited_for_long() -> None:
    assert (await Link(said(1), None).explain())["limits"] == [LIMIT]


@pytest.mark.parametrize("link", [(), (None,), ({},)])
async def test_without_an_answer_levels_are_not_known(link: tuple[Any, ...]) -> None:
    with pytest.raises(NoProcess):
        await Link(*link).explain()


async def test_unknown_keys_and_models_are_told() -> None:
    explanations = Link(said()).explanations
    with pytest.raises(UnknownSubject, match="no key x"):
        await explanations.explain("x", "llama", 1, 1)
    with pytest.raises(UnknownSubject, match="no model x"):
        await explanations.explain("acme/bot/ci", "x", 1, 1)


async def test_an_answer_that_comes_late_is_nobodys() -> None:
    link = Link(said())
    late = msgspec.msgpack.encode(Explained(99, b"{}"))
    link.explanations.on_explained(next(iter(link.peers)), late)  # type: ignore[arg-type]
