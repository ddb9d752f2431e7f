"""``GET /v1/generation?id=``: what became of one request of the asking key, and what it cost.

OpenRouter's idea (its ``/api/v1/generation``) in OpenAI's words. The ledger is asked first, then the
boards of this host for a request that still runs, then the ledger again after a pass of the shipper.
Endpoints appear under a public name: an engine's address is nobody's business. Not here: SQL.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gateway.contract.errors import GenerationNotFound, InvalidBody
from gateway.link.messages import Read
from gateway.metering.board import find_slot
from gateway.metering.incarnation import BOARD, all_folders
from gateway.metering.slots import SlotImage
from gateway.store.database import Database
from gateway.store.ledger import timestamp
from gateway.store.usage import find_record
from quotas.money import decimal
from quotas.record import AttemptEntry, decode

#: Our id, bare or as engines give it back: ``chatcmpl-<id>``, ``cmpl-<id>``, ``embd-<id>``.
ID = re.compile(r"(?:[a-z]{1,12}-)?([0-9a-f]{32})")


class Generations:
    """``ship``: bring what ended a moment ago into the ledger; a database that is away is no error
    of its own.
    """

    def __init__(self, db: Database, data_dir: Path, ship: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._data_dir = data_dir
        self._ship = ship

    async def look(self, question: Read) -> object:
        """Raises ``GenerationNotFound``, for another key's too; ``InvalidBody`` without an id."""
        given = question.query.get("id", "")
        if not given:
            raise InvalidBody("Name the request: /v1/generation?id=<x-request-id>.", "id")
        match = ID.fullmatch(given)
        if match is None:
            raise GenerationNotFound
        request_id = match[1]
        row = await find_record(self._db, request_id, question.key_id)
        if row is None:
            slot = await asyncio.to_thread(self._find_open, request_id)
            if slot is not None and slot.key_id == question.key_id:
                return _running(slot)
            await self._ship()
            row = await find_record(self._db, request_id, question.key_id)
        if row is None:
            raise GenerationNotFound
        return _finished(row)

    def _find_open(self, request_id: str) -> SlotImage | None:
        for folder in all_folders(self._data_dir):
            slot = find_slot(folder / BOARD, request_id)
            if slot is not None:
                return slot
        return None


def public_name(endpoint_id: int) -> str:
    """What a caller may know an endpoint by."""
    return f"endpoint-{endpoint_id}"


def _running(slot: SlotImage) -> dict[str, Any]:
    return {
        "object": "generation",
        "id": slot.request_id,
        "status": "in_progress",
        "operation": slot.operation,
        "started_at": timestamp(slot.started_ms),
    }


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """The record as its owner sees it: counts in the words of OpenAI's ``usage``."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    record = decode(row["payload"])
    return {
        "object": "generation",
        "id": row["request_id"],
        "status": "finished",
        "operation": record.operation,
        "model": row["model"],
        "started_at": timestamp(row["started_ms"]),
        "ttft_ms": None if row["ttft_ms"] < 0 else row["ttft_ms"],
        "total_ms": row["total_ms"],
        "outcome": row["outcome"],
        "http_status": row["status"],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": row["cached_tokens"]},
            "completion_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
        },
        "usage_source": row["source"],
        "cost": decimal(row["cost_nano"]) if row["currency"] else None,
        "currency": row["currency"] or None,
        "attempts": [_attempt(each) for each in record.attempts],
    }


def _attempt(each: AttemptEntry) -> dict[str, Any]:
    return {
        "endpoint": public_name(each.endpoint_id),
        "started_at": timestamp(each.started_ms),
        "duration_ms": max(0, each.ended_ms - each.started_ms),
        "status": each.status or None,
        "prompt_tokens": each.prompt_tokens,
        "completion_tokens": each.completion_tokens,
        "choices": each.choices,
    }
