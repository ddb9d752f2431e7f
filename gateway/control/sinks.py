"""The admin API's sinks: every receiver with its state, what was parked, and another try.

Not here: declaring them (``gateway.declared.sinks``), sending (``gateway.control.deliveries``).
"""

import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control.bodies import json_answer, number, read_body, typed
from gateway.events import rfc3339
from gateway.store import sinks as kept
from gateway.store.accounts import NotFound
from gateway.store.database import Database

PARKED_PER_PAGE, PARKED_PER_PAGE_MAX = 100, 10_000


class _Retry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    events: list[str] | None = None  # ids of parked events; None: all


class SinksDesk:
    """The handlers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def routes(self) -> list[Route]:
        one = "/admin/v1/sinks/{name}"
        return [
            Route("/admin/v1/sinks", self.list, methods=["GET"]),
            Route(one, self.show, methods=["GET"]),
            Route(f"{one}/retry", self.retry, methods=["POST"]),
        ]

    async def list(self, _request: Request) -> Response:
        async with self._db.read() as connection:
            rows = await kept.list_sinks(connection)
        return json_answer({"data": [_shown(row) for row in rows]})

    async def show(self, request: Request) -> Response:
        """One, with its parked events, the oldest first."""
        asked = request.query_params.get("limit", str(PARKED_PER_PAGE))
        limit = number(asked, "limit", 1, PARKED_PER_PAGE_MAX)
        name = request.path_params["name"]
        async with self._db.read() as connection:
            rows = await kept.list_sinks(connection)
            row = next((each for each in rows if each["name"] == name), None)
            if row is None:
                raise NotFound(f"no sink {name}")
            parked = await kept.list_parked(connection, row["id"], limit)
        for each in parked:
            each["parked_at"] = rfc3339(each.pop("parked_ms"))
        return json_answer(_shown(row) | {"parked_events": parked})

    async def retry(self, request: Request) -> Response:
        """Due at once; parked events, all or those named, are sent again."""
        body = typed(_Retry, await read_body(request) or b"{}")
        async with self._db.begin() as connection:
            queued = await kept.retry(connection, request.path_params["name"], body.events)
        return json_answer({"queued": queued})


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """``state``: ``failing`` until its next try, ``sending``, or ``idle``."""
    options = dict(row["options"])
    state = "idle"
    if row["failures"] and row["retry_ms"] > time.time_ns() // 1_000_000:
        state = "failing"
    elif row["waiting"] or row["queued"]:
        state = "sending"
    return {
        "name": row["name"],
        "kind": row["kind"],
        "format": options.get("format", "cloudevents"),
        "url": options["url"],
        "state": state,
        "delivered": row["delivered"],
        "waiting": row["waiting"],
        "parked": row["parked"],
        "failures": row["failures"],
        "failure": row["failure"] or None,
        "next_try_at": rfc3339(row["retry_ms"]) if row["failures"] else None,
        "delivered_at": rfc3339(row["delivered_ms"]) if row["delivered_ms"] else None,
        "options": options,
    }
