"""The admin API's reserved throughput: asked for, accepted, ended; used, and stood idle.

A tenant's term is asked for by whoever deals with the tenant and sold by the operator's word; from
then on data processes admit its requests apart, and its hours are billed. Not here: rows
(``gateway.store.contracts``), what a request gets of it (``gateway.terms``).
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control.bodies import end_ms, json_answer, read_body, typed
from gateway.declared.prices import DecimalPrice
from gateway.store import accounts, changes, contracts
from gateway.store.database import Database
from gateway.store.schema import models
from gateway.store.statements import find_party
from quotas.contracts import ThroughputTerm
from quotas.money import format_amount, parse_price
from quotas.months import format_period, parse_period, period_of


class _NewTerm(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    tokens_per_minute: int = Field(ge=1, le=10**11)
    price_per_hour: DecimalPrice
    until: str
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    overflow: str = Field("spill", pattern="^(reject|spill)$")


class ThroughputTerms:
    """The handlers. ``changed`` after a write that data processes must hear of, ``ship`` before a
    read.
    """

    def __init__(
        self,
        db: Database,
        changed: Callable[[], Awaitable[None]],
        ship: Callable[[], Awaitable[None]],
    ) -> None:
        self._db = db
        self._changed = changed
        self._ship = ship

    def routes(self) -> list[Route]:
        tenant, term = "/admin/v1/tenants/{tenant}/throughput", "/admin/v1/throughput/{term:int}"
        return [
            Route(tenant, self.show, methods=["GET"]),
            Route(tenant, self.ask_for, methods=["POST"]),
            Route(f"{term}/accept", self.accept, methods=["POST"]),
            Route(f"{term}/end", self.end, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """Every term of a tenant, and what a month used of it (``?month=2026-11``)."""
        await self._ship()
        text = request.query_params.get("month")
        month = period_of(_now_ms()) if text is None else parse_period(text)
        async with self._db.read() as connection:
            tenant_id = await find_party(connection, "tenant", request.path_params["tenant"])
            found = await shown_terms(connection, tenant_id, month)
        return json_answer({"data": found})

    async def ask_for(self, request: Request) -> Response:
        body: _NewTerm = typed(_NewTerm, await read_body(request))
        until_ms = end_ms(body.until, "until")
        if until_ms <= _now_ms():
            raise HTTPException(400, "until: expected a moment that is still to come")
        async with self._db.begin() as connection:
            tenant_id = await find_party(connection, "tenant", request.path_params["tenant"])
            model_id = await accounts.live_id(connection, models, name=body.model)
            if model_id is None:
                raise accounts.NotFound(f"no model {body.model}")
            term = ThroughputTerm(
                id=0,
                tenant_id=tenant_id,
                model_id=model_id,
                tokens_per_minute=body.tokens_per_minute,
                hour_nano=parse_price(body.price_per_hour),
                currency=body.currency,
                overflow="reject" if body.overflow == "reject" else "spill",
                accepted_ms=0,
                until_ms=until_ms,
            )
            term_id = await contracts.ask_for_term(connection, term, _now_ms())
        return json_answer(_term(msgspec.structs.replace(term, id=term_id), body.model), 201)

    async def accept(self, request: Request) -> Response:
        return await self._move(request, contracts.accept_term)

    async def end(self, request: Request) -> Response:
        return await self._move(request, contracts.end_term)

    async def _move(
        self, request: Request, move: Callable[[Any, int, int], Awaitable[ThroughputTerm]]
    ) -> Response:
        async with self._db.begin() as connection:
            term = await move(connection, request.path_params["term"], _now_ms())
            name = await contracts.model_name(connection, term.model_id)
            await changes.bump(connection, [("tenant", term.tenant_id)])
        await self._changed()
        return json_answer(_term(term, name))


async def shown_terms(
    connection: AsyncConnection, tenant_id: int, month: int
) -> list[dict[str, object]]:
    """Every term, and of the month: sold, used and idle tokens, and what it costs."""
    shown = []
    for term in (await contracts.terms_of(connection, [tenant_id])).get(tenant_id, []):
        said = await contracts.term_report(connection, term, month)
        name = await contracts.model_name(connection, term.model_id)
        shown.append(
            _term(term, name)
            | {
                "month": format_period(month),
                "sold_tokens": said.sold_tokens,
                "used_tokens": said.used_tokens,
                "idle_tokens": said.idle_tokens,
                "used_percent": f"{said.used_ppm // 10_000}.{said.used_ppm // 100 % 100:02d}",
                "charge": format_amount(said.charge_nano),
            }
        )
    return shown


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _state(term: ThroughputTerm) -> str:
    if term.until_ms <= _now_ms():
        return "ended"
    return "accepted" if term.accepted_ms else "asked"


def _term(term: ThroughputTerm, model: str) -> dict[str, object]:
    return {
        "id": term.id,
        "model": model,
        "tokens_per_minute": term.tokens_per_minute,
        "price_per_hour": format_amount(term.hour_nano),
        "currency": term.currency,
        "overflow": term.overflow,
        "state": _state(term),
        "accepted_ms": term.accepted_ms or None,
        "until_ms": term.until_ms,
    }
