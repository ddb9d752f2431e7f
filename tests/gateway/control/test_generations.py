"""What a key is told of one of its requests, on both databases: its own, and nothing of the house."""

from pathlib import Path
from typing import Any

import pytest

from gateway.contract.errors import GenerationNotFound, InvalidBody
from gateway.control.generations import Generations
from gateway.link.messages import Read
from gateway.metering.incarnation import Incarnation
from gateway.metering.slots import ids_of
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from quotas.record import AttemptEntry
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]

ATTEMPTS = (
    AttemptEntry(7, "http://10.0.0.7:8000", START_MS, START_MS + 4, 503, 0, 0, 2),
    AttemptEntry(8, "http://10.0.0.8:8000", START_MS + 5, START_MS + 9, 200, 10, 3, 2),
)


def question(request_id: str, key_id: int = 1) -> Read:
    return Read("/v1/generation", {"id": request_id}, 1, 1, key_id)


async def nothing_waits() -> None:
    pass


async def test_a_record_is_told_without_the_addresses_of_engines(
    db: Database, tmp_path: Path
) -> None:
    await apply(db, FULL)
    await insert_records(db, [record(1, attempts=ATTEMPTS, choices=2, status=200)])
    told: Any = await Generations(db, tmp_path, nothing_waits).look(question(f"{1:032x}"))
    assert told == {
        "object": "generation",
        "id": f"{1:032x}",
        "status": "finished",
        "operation": "chat",
        "model": "llama",
        "started_at": "2027-01-15T08:00:00.001Z",
        "ttft_ms": 5,
        "total_ms": 9,
        "outcome": "ok",
        "http_status": 200,
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "usage_source": "engine_final",
        "cost": told["cost"],
        "currency": "USD",
        "attempts": [
            {
                "endpoint": "endpoint-7", "started_at": "2027-01-15T08:00:00.000Z",
                "duration_ms": 4, "status": 503, "prompt_tokens": 0, "completion_tokens": 0,
                "choices": 2,
            },
            {
                "endpoint": "endpoint-8", "started_at": "2027-01-15T08:00:00.005Z",
                "duration_ms": 4, "status": 200, "prompt_tokens": 10, "completion_tokens": 3,
                "choices": 2,
            },
        ],
    }  # fmt: skip
    assert "10.0.0" not in str(told)


async def test_an_id_may_be_said_as_the_engine_gave_it_back(db: Database, tmp_path: Path) -> None:
    await insert_records(db, [record(1)])
    look = Generations(db, tmp_path, nothing_waits).look
    for prefix in ("chatcmpl-", "cmpl-", "embd-"):
        told: Any = await look(question(prefix + f"{1:032x}"))
        assert told["id"] == f"{1:032x}"


async def test_anothers_id_an_unknown_and_nonsense_are_the_same_404(
    db: Database, tmp_path: Path
) -> None:
    await insert_records(db, [record(1)])
    look = Generations(db, tmp_path, nothing_waits).look
    for asked in (question(f"{1:032x}", key_id=2), question(f"{9:032x}"), question("' OR 1=1")):
        with pytest.raises(GenerationNotFound):
            await look(asked)
    with pytest.raises(InvalidBody, match="Name the request"):
        await look(question(""))


async def test_a_request_that_runs_is_told_to_its_key_alone(db: Database, tmp_path: Path) -> None:
    life = Incarnation.create(tmp_path, 0, 16)
    slot = life.board.claim()
    assert slot is not None
    slot.reserving(bytes.fromhex(f"{1:032x}"), ids_of(1, 1, 5, 1, 1), 0, 1, 1, 9, 9, START_MS)
    look = Generations(db, tmp_path, nothing_waits).look
    assert await look(question(f"{1:032x}", key_id=5)) == {
        "object": "generation",
        "id": f"{1:032x}",
        "status": "in_progress",
        "operation": "chat",
        "started_at": "2027-01-15T08:00:00.000Z",
    }
    with pytest.raises(GenerationNotFound):
        await look(question(f"{1:032x}", key_id=6))
    slot.free()
    with pytest.raises(GenerationNotFound):
        await look(question(f"{1:032x}", key_id=5))
    life.close()


async def test_what_ended_a_moment_ago_is_shipped_and_told(db: Database, tmp_path: Path) -> None:
    async def ship() -> None:
        await insert_records(db, [record(1)])

    told: Any = await Generations(db, tmp_path, ship).look(question(f"{1:032x}"))
    assert told["status"] == "finished"
