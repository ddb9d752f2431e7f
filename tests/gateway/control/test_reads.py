"""Look-ups by name: a value, a refusal in the contract's shape, or no answer at all."""

import json
from pathlib import Path

import msgspec
import pytest

from gateway import reads as lane
from gateway.contract.errors import GenerationNotFound, TooManyReads
from gateway.control.core import Core
from gateway.control.reads import Reads
from gateway.link.messages import Read, ReadAnswer
from gateway.settings import Settings


async def asked(looks: dict[str, object], path: str) -> ReadAnswer:
    question = msgspec.msgpack.encode(Read(path, {}, 1, 2, 3))
    said = await Reads(looks).on_read(None, question)  # type: ignore[arg-type]
    return msgspec.msgpack.decode(said, type=ReadAnswer)


async def test_a_value_is_a_200_and_a_contract_error_its_own_status() -> None:
    async def value(question: Read) -> object:
        return {"key": question.key_id}

    async def missing(question: Read) -> object:
        raise GenerationNotFound

    async def busy(question: Read) -> object:
        raise TooManyReads(4)

    looks = {"/a": value, "/b": missing, "/c": busy}
    assert await asked(looks, "/a") == ReadAnswer(200, b'{"key":3}')
    refused = await asked(looks, "/b")
    assert refused.status == 404
    assert json.loads(refused.body)["error"]["code"] == "generation_not_found"
    assert (await asked(looks, "/c")).retry_after_ms == 1000


async def test_a_fault_is_no_answer() -> None:
    async def broken(question: Read) -> object:
        raise OSError("the database is away")

    with pytest.raises(OSError, match="away"):
        await asked({"/a": broken}, "/a")


async def test_both_planes_know_the_same_paths(tmp_path: Path) -> None:
    core = Core(
        Settings(data_dir=str(tmp_path)),
        pepper="p",
        operator_token="o",
        store=None,
        reachable_store=None,
        environ={},
        host_pid=1,
    )
    assert set(core.reads.looks) == lane.PATHS
    await core.db.close()
