"""The admin API's money: credits, contracts, corrections, statements, margins.

Amounts travel as decimal texts, months as "2026-11". Beside it the one door that needs no operator
token: a payment provider's events, which are signed. Not here: SQL (``gateway.store``), the command
line (``gateway.cli``).
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control.bodies import end_ms, json_answer, read_body, typed
from gateway.control.payments import NotAnEvent, NotSigned, Payment, check_signature, payment_of
from gateway.control.purses import Move
from gateway.control.throughput import ThroughputTerms, shown_terms
from gateway.declared.prices import DecimalPrice
from gateway.signing import Signer, signed_file
from gateway.store import (
    accounts,
    contracts,
    corrections,
    credit,
    margins,
    statements,
)
from gateway.store.database import Database
from quotas.contracts import Contract
from quotas.money import format_amount, parse_amount
from quotas.months import format_period, parse_period, period_of

IDEMPOTENCY_KEY_MAX = 255
REFERENCE = r"^[\x21-\x7e]{1,200}$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _NewCredit(_Body):
    amount: DecimalPrice
    reference: str = Field(pattern=REFERENCE)
    kind: str = Field("paid", pattern="^(paid|promotional)$")
    currency: str | None = Field(None, pattern="^[A-Z]{3}$")
    priority: int = Field(100, ge=1, le=1_000)
    expires: str | None = None


class _Reference(_Body):
    reference: str = Field(pattern=REFERENCE)


class _Version(_Body):
    price_version: int = Field(ge=1)


class _NewStatement(_Body):
    kind: str = Field("tenant", pattern="^(tenant|publisher)$")
    party: str
    month: str


class _Payout(_Body):
    amount: DecimalPrice
    reference: str = Field(pattern=REFERENCE)
    currency: str = Field("USD", pattern="^[A-Z]{3}$")


class MoneyDeps(msgspec.Struct, frozen=True, kw_only=True):
    """``changed`` after a write that data processes must hear of, ``credited`` after one that moves
    tenants' balances, ``ship`` before a read, ``focus`` makes FOCUS rows of a statement. ``stripe_secret`` None: no such door.
    """

    db: Database
    signer: Signer
    stripe_secret: str | None
    changed: Callable[[], Awaitable[None]]
    credited: Callable[[Sequence[Move]], Awaitable[None]]
    ship: Callable[[], Awaitable[None]]
    focus: Callable[[int, str], Awaitable[Response]]


class Money:
    """The handlers."""

    def __init__(self, deps: MoneyDeps) -> None:
        self._deps = deps
        self._db = deps.db

    def routes(self) -> list[Route]:
        tenant = "/admin/v1/tenants/{tenant}"
        record = "/admin/v1/records/{request_id}"
        post, get = ["POST"], ["GET"]
        return [
            Route(f"{tenant}/credits", self.show_credits, methods=get),
            Route(f"{tenant}/credits", self.add_credit, methods=post),
            Route(f"{tenant}/credits/reverse", self.reverse_credit, methods=post),
            Route(f"{tenant}/contract", self.show_contract, methods=get),
            Route(f"{record}/reverse", self.reverse_record, methods=post),
            Route(f"{record}/reprice", self.reprice_record, methods=post),
            Route("/admin/v1/publishers/{publisher}/payouts", self.pay_out, methods=post),
            Route("/admin/v1/statements", self.list_statements, methods=get),
            Route("/admin/v1/statements", self.close_month, methods=post),
            Route("/admin/v1/statements/preview", self.preview, methods=get),
            Route("/admin/v1/statements/{number:int}", self.statement_file, methods=get),
            Route("/admin/v1/margin", self.margin, methods=get),
            Route("/webhooks/stripe", self.stripe, methods=post),
            *ThroughputTerms(self._db, self._deps.changed, self._deps.ship).routes(),
        ]

    # -- credits -----------------------------------------------------------------------------

    async def show_credits(self, request: Request) -> Response:
        await self._deps.ship()
        async with self._db.read() as connection:
            tenant_id = await self._tenant(connection, request)
            found = await credit.balances(connection, [tenant_id], now_ms())
            rows = await credit.list_credits(connection, tenant_id)
        return json_answer(
            {"balance": _balance(found[tenant_id]), "credits": [_credit(row) for row in rows]}
        )

    async def add_credit(self, request: Request) -> Response:
        raw = await read_body(request)
        body: _NewCredit = typed(_NewCredit, raw)
        moves: list[Move] = []

        async def give(connection: Any, tenant_id: int, at_ms: int) -> dict[str, Any]:
            held = (await credit.balances(connection, [tenant_id], at_ms))[tenant_id]
            expires_ms = 0 if body.expires is None else end_ms(body.expires, "expires")
            if expires_ms and expires_ms <= at_ms:
                raise HTTPException(400, "expires: expected a moment that is still to come")
            done = await credit.add_credit(
                connection,
                credit.Credit(
                    tenant_id=tenant_id,
                    kind="promotional" if body.kind == "promotional" else "paid",
                    amount_nano=parse_amount(body.amount),
                    currency=body.currency or held.currency,
                    reference=body.reference,
                    priority=body.priority,
                    expires_ms=expires_ms,
                ),
                at_ms,
            )
            held = (await credit.balances(connection, [tenant_id], at_ms))[tenant_id]
            moves.append(Move(tenant_id, done["entry_key"], done["amount_nano"], done["currency"]))
            return {
                "reference": body.reference,
                "amount": format_amount(done["amount_nano"]),
                "settled": format_amount(done["settled_nano"]),
                "balance": _balance(held),
            }

        return await self._once(request, raw, give, moves, 201)

    async def reverse_credit(self, request: Request) -> Response:
        raw = await read_body(request)
        body: _Reference = typed(_Reference, raw)
        moves: list[Move] = []

        async def take(connection: Any, tenant_id: int, at_ms: int) -> dict[str, Any]:
            done = await credit.reverse_credit(connection, tenant_id, body.reference, at_ms)
            held = (await credit.balances(connection, [tenant_id], at_ms))[tenant_id]
            moves.append(Move(tenant_id, done["entry_key"], done["moved_nano"], done["currency"]))
            return {
                "reference": body.reference,
                "amount": format_amount(done["amount_nano"]),
                "unused": format_amount(done["unused_nano"]),
                "balance": _balance(held),
            }

        return await self._once(request, raw, take, moves, 200)

    async def _once(
        self,
        request: Request,
        raw: bytes,
        do: Callable[[Any, int, int], Awaitable[dict[str, Any]]],
        moves: Sequence[Move],
        status: int,
    ) -> Response:
        """Do it in one transaction; under an Idempotency-Key once, with the same answer after."""
        key = request.headers.get("idempotency-key", "")
        if len(key) > IDEMPOTENCY_KEY_MAX:
            raise HTTPException(400, f"Idempotency-Key: at most {IDEMPOTENCY_KEY_MAX} characters")
        asked = request.url.path.encode() + b"\n" + raw
        async with self._db.begin() as connection:
            if key:
                before = await credit.answered_before(connection, key, asked)
                if before is not None:
                    return json_answer(before, status)
            tenant_id = await self._tenant(connection, request)
            answer = await do(connection, tenant_id, now_ms())
            if key:
                await credit.remember_answer(connection, key, asked, answer, now_ms())
        await self._deps.credited(moves)
        return json_answer(answer, status)

    # -- contracts ---------------------------------------------------------------------------

    async def show_contract(self, request: Request) -> Response:
        await self._deps.ship()
        month = _month(request, now_ms())
        async with self._db.read() as connection:
            tenant_id = await self._tenant(connection, request)
            versions = (await contracts.contracts_of(connection, [tenant_id])).get(tenant_id, [])
            sold = await shown_terms(connection, tenant_id, month)
        return json_answer(
            {"contracts": [_contract(each) for each in versions], "throughput": sold}
        )

    # -- corrections -------------------------------------------------------------------------

    async def reverse_record(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]

        async def undo(connection: Any, at_ms: int) -> dict[str, Any]:
            return await corrections.reverse_record(connection, request_id, at_ms)

        return await self._corrected(undo)

    async def reprice_record(self, request: Request) -> Response:
        body: _Version = typed(_Version, await read_body(request))
        request_id = request.path_params["request_id"]

        async def anew(connection: Any, at_ms: int) -> dict[str, Any]:
            version = body.price_version
            return await corrections.reprice_record(connection, request_id, version, at_ms)

        return await self._corrected(anew)

    async def _corrected(self, do: Callable[[Any, int], Awaitable[dict[str, Any]]]) -> Response:
        await self._deps.ship()
        at_ms = now_ms()
        async with self._db.begin() as connection:
            done = await do(connection, at_ms)
            moves = await _moved(connection, done.pop("tenant_id"), at_ms)
        await self._deps.credited(moves)
        if "charged_nano" in done:
            done["charged"] = format_amount(done.pop("charged_nano"))
        return json_answer(done)

    # -- statements --------------------------------------------------------------------------

    async def close_month(self, request: Request) -> Response:
        await self._deps.ship()
        body: _NewStatement = typed(_NewStatement, await read_body(request))
        month = parse_period(body.month)
        kind: Any = body.kind
        at_ms, moves = now_ms(), list[Move]()
        async with self._db.begin() as connection:
            made = await statements.close(
                connection, kind, body.party, month, at_ms, self._deps.signer.sign
            )
            if kind == "tenant":
                tenant_id = await statements.find_party(connection, kind, body.party)
                moves = await _moved(connection, tenant_id, at_ms)
        await self._deps.credited(moves)
        return json_answer({"data": made}, 201)

    async def preview(self, request: Request) -> Response:
        await self._deps.ship()
        query = request.query_params
        kind: Any = query.get("kind", "tenant")
        if kind not in ("tenant", "publisher"):
            raise HTTPException(400, "kind: expected tenant or publisher")
        month = _month(request, now_ms())
        async with self._db.read() as connection:
            made = await statements.preview(
                connection, kind, query.get("party", ""), month, now_ms()
            )
        return json_answer({"data": made})

    async def list_statements(self, request: Request) -> Response:
        after = request.query_params.get("cursor", "0")
        if not (after.isascii() and after.isdigit() and len(after) < 19):  # noqa: PLR2004
            raise HTTPException(400, "cursor: expected what an answer before gave as next")
        async with self._db.read() as connection:
            rows = await statements.listed(connection, after=int(after))
        more = str(rows[-1]["number"]) if len(rows) == statements.PAGE else None
        return json_answer(
            {
                "data": [row | {"month": format_period(row["month"])} for row in rows],
                "next": more,
            }
        )

    async def statement_file(self, request: Request) -> Response:
        if "format" in request.query_params:
            number = request.path_params["number"]
            return await self._deps.focus(number, request.query_params["format"])
        async with self._db.read() as connection:
            row = await statements.one(connection, request.path_params["number"])
        data = signed_file(
            bytes(row["document"]), bytes(row["signature"]), bytes(row["public_key"])
        )
        return Response(data, media_type="application/json")

    async def pay_out(self, request: Request) -> Response:
        body: _Payout = typed(_Payout, await read_body(request))
        name = request.path_params["publisher"]
        async with self._db.begin() as connection:
            publisher_id = await statements.find_party(connection, "publisher", name)
            left = await credit.pay_out(
                connection,
                publisher_id,
                parse_amount(body.amount),
                body.currency,
                body.reference,
                now_ms(),
            )
        return json_answer(
            {"reference": body.reference, "amount": body.amount, "payable": format_amount(left)},
            201,
        )

    async def margin(self, request: Request) -> Response:
        await self._deps.ship()
        month = _month(request, now_ms())
        async with self._db.read() as connection:
            found = await margins.by_model(connection, month, now_ms())
        return json_answer({"month": format_period(month), "data": found})

    # -- the payment provider ----------------------------------------------------------------

    async def stripe(self, request: Request) -> Response:
        """An event of Stripe's. 400 where the signature does not fit; the provider asks again then."""
        secret = self._deps.stripe_secret
        if secret is None:
            raise HTTPException(404, "Not Found")
        raw = await read_body(request)
        try:
            check_signature(
                request.headers.get("stripe-signature", ""), raw, secret, int(time.time())
            )
            payment = payment_of(raw)
        except (NotSigned, NotAnEvent) as error:
            raise HTTPException(400, str(error)) from None
        done = await self._take_payment(payment)
        return json_answer({"event": payment.event, "done": done})

    async def _take_payment(self, payment: Payment) -> str:
        """What came of it. What was done before is no error: a provider tells things twice."""
        if payment.verb == "ignore":
            return "ignored"
        async with self._db.begin() as connection:
            tenant_id = await statements.find_party(connection, "tenant", payment.tenant)
            try:
                if payment.verb == "credit":
                    asked = credit.Credit(
                        tenant_id=tenant_id,
                        kind="paid",
                        amount_nano=payment.amount_nano,
                        currency=payment.currency,
                        reference=payment.reference,
                    )
                    done = await credit.add_credit(connection, asked, now_ms())
                    moved = done["amount_nano"]
                else:
                    done = await credit.reverse_credit(
                        connection, tenant_id, payment.reference, now_ms()
                    )
                    moved = done["moved_nano"]
            except accounts.Conflict:
                return "done before"
        await self._deps.credited([Move(tenant_id, done["entry_key"], moved, done["currency"])])
        return "credited" if payment.verb == "credit" else "reversed"

    async def _tenant(self, connection: Any, request: Request) -> int:
        return await statements.find_party(connection, "tenant", request.path_params["tenant"])


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _moved(connection: Any, tenant_id: int, at_ms: int) -> list[Move]:
    """What has moved a tenant's balance from that moment on. What is told twice moves it once."""
    found = await credit.recent_moves(connection, at_ms - 1, at_ms, [tenant_id])
    return [Move(*each) for each in found]


def _month(request: Request, at_ms: int) -> int:
    text = request.query_params.get("month")
    return period_of(at_ms) if text is None else parse_period(text)


def _balance(found: credit.Balance) -> Mapping[str, object]:
    line = found.credit_line_nano
    return {
        "currency": found.currency,
        "available": format_amount(found.available_nano),
        "granted": format_amount(found.granted_nano),
        "owed": format_amount(found.owed_nano),
        "credit_line": None if line < 0 else format_amount(line),
    }


def _credit(row: Mapping[str, Any]) -> Mapping[str, object]:
    return {
        "reference": row["reference"],
        "kind": row["kind"],
        "currency": row["currency"],
        "amount": format_amount(row["amount_nano"]),
        "left": format_amount(row["left_nano"]),
        "priority": row["priority"],
        "given_ms": row["given_ms"],
        "expires_ms": row["expires_ms"] or None,
        "reversed_ms": row["reversed_ms"] or None,
    }


def _contract(contract: Contract) -> Mapping[str, object]:
    line = contract.credit_line_nano
    return {
        "version": contract.version,
        "kind": contract.kind,
        "currency": contract.currency,
        "credit_line": None if line < 0 else format_amount(line),
        "commitment": format_amount(contract.commitment_nano),
        "overage": format_amount(contract.overage_ppm * 1_000),
        "from_ms": contract.from_ms,
    }
