"""The admin API: what the command line talks to, behind the operator token.

Starlette; errors are problem+json (RFC 9457) with one clear sentence. The same application answers
in the command's own process when no server runs, so a handler knows nothing of a running server
beyond the callbacks it is given. Not here: SQL (``gateway.store``), files (``gateway.declared``).
"""

import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import identity
from gateway.control.bodies import (
    expires_s,
    json_answer,
    number,
    read_body,
    since_ms,
    typed,
    typed_values,
)
from gateway.control.explanations import NoProcess, UnknownSubject
from gateway.control.exports import Exports
from gateway.control.focus import Seller
from gateway.control.limits import LimitsChange, LimitsDesk
from gateway.control.money import Money, MoneyDeps
from gateway.control.purses import Move
from gateway.control.sinks import SinksDesk
from gateway.control.usages import Usages
from gateway.declared.apply import Applier
from gateway.declared.document import DeclaredError, EndpointPart, load, parse
from gateway.metering.reconcile import Report
from gateway.signing import Signer
from gateway.store import accounts, catalog, changes, ledger, rollups, usage
from gateway.store.database import Database
from gateway.store.reconciliations import read_reports
from gateway.store.schema import models, pools
from quotas.money import decimal
from quotas.statement import StatementWrong

RECORDS_PER_PAGE_MAX = 10_000
#: What a database that is away raises, through its driver and before it.
AWAY = (OperationalError, InterfaceError, PoolTimeout, OSError)
_log = logging.getLogger("gateway.control.app")
#: The request that is explained where none is described.
EXPLAIN_TOKENS = 1_000
TOKENS_MAX = 10**9


class ControlDeps(msgspec.Struct, frozen=True, kw_only=True):
    """What the handlers need. ``changed`` runs after a write, ``ship`` before a read of usage,
    ``credited`` after one that moved tenants' balances.
    """

    db: Database
    pepper: bytes
    key_env: str
    operator_token: str
    changed: Callable[[], Awaitable[None]]
    ship: Callable[[], Awaitable[None]]
    metrics_text: Callable[[], Awaitable[bytes]]
    ready: Callable[[], Mapping[str, object]]
    probe: Callable[[str, str], Awaitable[Mapping[str, object]]]
    doctor: Callable[[], Awaitable[list[Any]]]
    reconcile: Callable[[], Awaitable[list[Report]]]
    explain: Callable[[str, str, int, int], Awaitable[Mapping[str, object]]]
    credited: Callable[[Sequence[Move]], Awaitable[None]]
    signer: Signer
    stripe_secret: str | None = None
    provider_name: str = "Token Factory"


class _NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str
    models: list[str] | None = None
    expires: str | None = None


class _Path(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str


class _NewModel(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    url: str
    upstream: str | None = None
    pool: str | None = None


class _Apply(BaseModel):
    model_config = ConfigDict(extra="forbid")
    document: Any
    file: str = "the request"
    prune: bool = False
    dry_run: bool = False


def build_app(deps: ControlDeps) -> Starlette:
    """Every route of the control listener. Admin routes live behind the token, by construction."""
    admin = _Admin(deps)
    money = Money(
        MoneyDeps(
            db=deps.db,
            signer=deps.signer,
            stripe_secret=deps.stripe_secret,
            changed=deps.changed,
            credited=deps.credited,
            ship=deps.ship,
            focus=admin.exports.statement,
        )
    )
    return Starlette(
        routes=[
            Route("/healthz", lambda _: JSONResponse({"status": "ok"})),
            Route("/readyz", admin.readyz),
            Route("/metrics", admin.metrics),
            Route("/admin/v1/apply", admin.apply, methods=["POST"]),
            Route("/admin/v1/keys", admin.list_keys, methods=["GET"]),
            Route("/admin/v1/keys", admin.create_key, methods=["POST"]),
            Route("/admin/v1/keys/rotate", admin.rotate_key, methods=["POST"]),
            Route("/admin/v1/keys/revoke", admin.revoke_key, methods=["POST"]),
            Route("/admin/v1/models", admin.list_models, methods=["GET"]),
            Route("/admin/v1/models", admin.add_model, methods=["POST"]),
            Route("/admin/v1/usage", admin.usage, methods=["GET"]),
            Route("/admin/v1/usage/records", admin.records, methods=["GET"]),
            Route("/admin/v1/usage/differences", admin.check_usage, methods=["GET"]),
            Route("/admin/v1/usage/rebuild", admin.rebuild_usage, methods=["POST"]),
            Route("/admin/v1/export", admin.exports.export, methods=["GET"]),
            Route("/admin/v1/doctor", admin.doctor, methods=["GET"]),
            *money.routes(),
            *SinksDesk(deps.db).routes(),
            Route("/admin/v1/limits", admin.list_limits, methods=["GET"]),
            Route("/admin/v1/limits", admin.change_limits, methods=["POST"]),
            Route("/admin/v1/reconciliations", admin.reconcile, methods=["POST"]),
            Route("/admin/v1/reconciliations", admin.reconciliations, methods=["GET"]),
            Route("/admin/v1/explain", admin.explain, methods=["GET"]),
        ],
        middleware=[Middleware(_OperatorOnly, token=deps.operator_token)],
        exception_handlers={
            HTTPException: _http_problem,
            DeclaredError: _problem(400, "The declared file is wrong"),
            accounts.NotFound: _problem(404, "Not found"),
            accounts.Conflict: _problem(409, "Conflict"),
            UnknownSubject: _problem(404, "Not found"),
            NoProcess: _problem(503, "Levels are not known"),
            StatementWrong: _problem(409, "The books do not add up"),
            ValueError: _problem(400, "Bad request"),
            **dict.fromkeys(AWAY, _database_away),
        },
    )


class _OperatorOnly:
    """Everything under /admin asks for the token, whether the route exists or not."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/admin"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                response = problem(401, "Unauthorized", "the operator token is missing or wrong")
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Admin:
    """The handlers."""

    def __init__(self, deps: ControlDeps) -> None:
        self._deps = deps
        self._db = deps.db
        self._usages = Usages(deps.db, deps.ship)
        self.exports = Exports(deps.db, deps.ship, Seller(deps.provider_name))
        self._limits = LimitsDesk(deps.db, deps.changed)
        self._applier = Applier(deps.db, mint=self._mint, digest=self._digest, now_ms=_now_ms)

    async def readyz(self, _request: Request) -> Response:
        state = self._deps.ready()
        return JSONResponse(dict(state), 200 if state.get("ready") else 503)

    async def metrics(self, _request: Request) -> Response:
        text = await self._deps.metrics_text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def doctor(self, _request: Request) -> Response:
        return json_answer({"data": await self._deps.doctor()})

    # -- the declared file -------------------------------------------------------------------

    async def apply(self, request: Request) -> Response:
        raw = await read_body(request)
        if "json" in request.headers.get("content-type", ""):
            body = typed(_Apply, raw)
            declared = parse(body.document, body.file)
            prune, dry_run, file = body.prune, body.dry_run, body.file
        else:
            file = "the request"
            declared = load(raw.decode("utf-8", "replace"), file)
            prune = request.query_params.get("prune") == "1"
            dry_run = request.query_params.get("dry_run") == "1"
        applied = await self._applier.apply(declared, file, prune=prune, dry_run=dry_run)
        if not dry_run:
            await self._deps.changed()
        return json_answer(applied)

    # -- keys --------------------------------------------------------------------------------

    async def list_keys(self, _request: Request) -> Response:
        async with self._db.read() as connection:
            rows = await accounts.list_keys(connection)
        return json_answer({"data": [_key_shown(row, _now_ms()) for row in rows]})

    async def create_key(self, request: Request) -> Response:
        body = typed(_NewKey, await read_body(request))
        tenant, project, name = accounts.split_path(body.path)
        minted, now_ms = self._mint(), _now_ms()
        async with self._db.begin() as connection:
            project_id = await accounts.ensure_project(connection, tenant, project)
            await self._check_models(connection, body.models)
            key_id = await accounts.create_key(
                connection,
                project_id,
                name,
                None if body.models is None else tuple(body.models),
                None if body.expires is None else expires_s(body.expires),
                now_ms,
            )
            digest = self._digest(minted.token)
            await accounts.add_secret(connection, key_id, minted, digest, now_ms)
            version = await changes.bump(connection, [("key", key_id)])
        return await self._changed(
            {"path": body.path, "secret": minted.token, "version": version}, 201
        )

    async def rotate_key(self, request: Request) -> Response:
        body = typed(_Path, await read_body(request))
        minted, now_ms = self._mint(), _now_ms()
        async with self._db.begin() as connection:
            key_id = await accounts.find_key(connection, body.path)
            await accounts.rotate(connection, key_id, minted, self._digest(minted.token), now_ms)
            version = await changes.bump(connection, [("key", key_id)])
        return await self._changed({"path": body.path, "secret": minted.token, "version": version})

    async def revoke_key(self, request: Request) -> Response:
        body = typed(_Path, await read_body(request))
        async with self._db.begin() as connection:
            key_id = await accounts.find_key(connection, body.path)
            await accounts.revoke(connection, key_id, _now_ms())
            version = await changes.bump(connection, [("key", key_id)])
        return await self._changed({"path": body.path, "state": "revoked", "version": version})

    async def _check_models(self, connection: Any, names: list[str] | None) -> None:
        for name in names or ():
            if await accounts.live_id(connection, models, name=name) is None:
                raise accounts.NotFound(f"no model {name}")

    # -- models ------------------------------------------------------------------------------

    async def list_models(self, _request: Request) -> Response:
        shown = []
        now_ms = time.time_ns() // 1_000_000
        async with self._db.read() as connection:
            rows = await connection.execute(
                select(models, pools.c.name.label("pool"))
                .join(pools, models.c.pool_id == pools.c.id)
                .where(models.c.deleted_at.is_(None))
                .order_by(models.c.name)
            )
            for row in rows.mappings().all():
                price = await catalog.price_in_force(connection, row["id"], now_ms)
                shown.append(
                    {
                        "name": row["name"],
                        "upstream": row["upstream"],
                        "pool": row["pool"],
                        "context_tokens": row["context_tokens"],
                        "max_output_tokens": row["max_output_tokens"],
                        "price": None
                        if price is None
                        else {
                            "version": price.version,
                            "currency": price.currency,
                            **{name: decimal(nano) for name, nano in price.nano.items()},
                        },
                    }
                )
        return json_answer({"data": shown})

    async def add_model(self, request: Request) -> Response:
        body = typed(_NewModel, await read_body(request))
        url = body.url.rstrip("/").removesuffix("/v1")
        typed_values(EndpointPart, {"url": url})
        upstream = body.upstream or body.name
        found = await self._deps.probe(url, upstream)
        pool = body.pool or body.name.replace("/", "-")
        declared = parse(
            {
                "pools": [{"name": pool, "endpoints": [{"url": url}]}],
                "models": [{"name": body.name, "upstream": upstream, "pool": pool}],
            },
            "the request",
        )
        applied = await self._applier.apply(declared, "the request")
        return await self._changed(
            {"name": body.name, "pool": pool, "found": dict(found), "version": applied.version},
            201,
        )

    # -- limits ------------------------------------------------------------------------------

    async def list_limits(self, request: Request) -> Response:
        return json_answer({"data": await self._limits.list(request.query_params.get("path", ""))})

    async def change_limits(self, request: Request) -> Response:
        wanted = typed(LimitsChange, await read_body(request))
        return json_answer(await self._limits.change(wanted))

    async def explain(self, request: Request) -> Response:
        query = request.query_params
        key, model = query.get("key", ""), query.get("model", "")
        tokens = number(query.get("tokens", str(EXPLAIN_TOKENS)), "tokens", 1, TOKENS_MAX)
        answer = number(query.get("max_tokens", str(tokens // 2)), "max_tokens", 0, tokens)
        return json_answer(await self._deps.explain(key, model, tokens - answer, answer))

    # -- usage -------------------------------------------------------------------------------

    async def usage(self, request: Request) -> Response:
        return json_answer(await self._usages.of_operator(request.query_params))

    async def check_usage(self, _request: Request) -> Response:
        """Where sums and ledger differ; empty when they agree."""
        await self._deps.ship()
        return json_answer({"data": await rollups.differences(self._db)})

    async def rebuild_usage(self, _request: Request) -> Response:
        """Every sum anew from the ledger."""
        await self._deps.ship()
        return json_answer({"rows": await rollups.rebuild(self._db)})

    async def records(self, request: Request) -> Response:
        query = request.query_params
        limit = number(query.get("limit", "1000"), "limit", 1, RECORDS_PER_PAGE_MAX)
        after = number(query.get("cursor", query.get("after", "0")), "cursor", 0, 1 << 62)
        await self._deps.ship()
        page, cursor = await usage.read_records(
            self._db, after_id=after, limit=limit, since_ms=since_ms(request)
        )
        return json_answer({"data": page, "next": None if cursor is None else str(cursor)})

    # -- engines' counters -------------------------------------------------------------------

    async def reconcile(self, _request: Request) -> Response:
        """Judge every endpoint up to now."""
        return json_answer({"data": [_report_shown(each) for each in await self._deps.reconcile()]})

    async def reconciliations(self, request: Request) -> Response:
        """What was found before, newest first."""
        query = request.query_params
        limit = number(query.get("limit", "100"), "limit", 1, RECORDS_PER_PAGE_MAX)
        found = await read_reports(self._db, endpoint=query.get("endpoint"), limit=limit)
        reports = [msgspec.json.decode(text, type=Report) for text in found]
        return json_answer({"data": [_report_shown(each) for each in reports]})

    # -- shared ------------------------------------------------------------------------------

    async def _changed(self, said: Mapping[str, object], status: int = 200) -> Response:
        await self._deps.changed()
        return json_answer(said, status)

    def _mint(self) -> identity.MintedKey:
        return identity.mint(self._deps.key_env, secrets.token_bytes)

    def _digest(self, token: str) -> bytes:
        return identity.digest(self._deps.pepper, token)


def problem(status: int, title: str, detail: str) -> Response:
    """RFC 9457."""
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status,
        media_type="application/problem+json",
    )


def _problem(status: int, title: str) -> Callable[[Request, Exception], Response]:
    return lambda _request, error: problem(status, title, str(error))


def _database_away(_request: Request, error: Exception) -> Response:
    _log.warning("the database does not answer: %s", type(error).__name__)
    return problem(503, "Database away", "the database does not answer; try again")


def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.detail)


def _key_shown(row: accounts.KeyRow, now_ms: int) -> dict[str, object]:
    state = "live"
    if row.revoked_ms is not None:
        state = "revoked"
    elif row.expires_s is not None and row.expires_s * 1000 <= now_ms:
        state = "expired"
    return {
        "path": row.path,
        "kid": row.kids[-1] if row.kids else None,
        "state": state,
        "models": None if row.models is None else list(row.models),
        "expires": None if row.expires_s is None else ledger.timestamp(row.expires_s * 1000),
        "created": ledger.timestamp(row.created_ms),
    }


def _report_shown(report: Report) -> dict[str, object]:
    shown: dict[str, object] = msgspec.to_builtins(report)
    shown["from"], shown["to"] = ledger.timestamp(report.from_ms), ledger.timestamp(report.to_ms)
    return shown


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
