"""SQL to the documents that data processes know: a full load, or what changed since a version.

Read only. Not here: who is told (``gateway.control.feed``), what they do with it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import msgspec
from sqlalchemy import Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.snapshot import (
    PLATFORM_ID,
    Doc,
    KeyDoc,
    Kind,
    ModelDoc,
    Move,
    PlatformDoc,
    ProjectDoc,
    SecretDoc,
    TenantDoc,
    Throughput,
    Timeouts,
    encode_doc,
)
from gateway.store import catalog, changes, contracts
from gateway.store.accounts import models_of
from gateway.store.credit import DEFAULT_CURRENCY, NANO_PER_MICRO
from gateway.store.database import Database
from gateway.store.limits import OFFLINE, LimitName, LimitValue, read_limits, read_limits_of
from gateway.store.schema import (
    endpoints,
    key_secrets,
    keys,
    limits,
    models,
    pools,
    projects,
    tenants,
)
from quotas.buckets import MAX_UNITS
from quotas.contracts import Contract, ThroughputTerm
from quotas.limits import Algorithm, Dimension, Limit, Outage, Window
from quotas.pricing import DEFAULT_TIER, Price
from routing.topology import Endpoint, Pool

_TABLES = {"tenant": tenants, "project": projects, "key": keys, "model": models, "pool": pools}
#: Rows that one query asks for: databases bound the number of parameters.
AT_ONCE = 500
#: Window -> algorithm.
_ALGORITHMS: dict[Window, Algorithm] = {
    "minute": "bucket",
    "day": "quota",
    "week": "quota",
    "month": "quota",
    "lifetime": "quota",
    "now": "concurrency",
}


class Loader:
    """One per control process. ``unix_ms``: of which moment prices and contracts are in force."""

    def __init__(self, db: Database, unix_ms: Callable[[], int]) -> None:
        self._db = db
        self._unix_ms = unix_ms

    async def version(self) -> int:
        """The newest version of the change log."""
        async with self._db.read() as connection:
            return await changes.peek(connection)

    async def full(self) -> tuple[int, list[Move]]:
        """(version, every living document)."""
        async with self._db.read() as connection:
            version = await changes.peek(connection)
            moves: list[Move] = []
            for kind, table in _TABLES.items():
                ids = await connection.scalars(
                    select(table.c.id).where(table.c.deleted_at.is_(None))
                )
                moves += await self._moves(connection, kind, ids.all())
            moves += await self._moves(connection, "platform", [PLATFORM_ID])
            return version, moves

    async def since(self, version: int) -> tuple[int, list[Move]] | None:
        """(version now, what changed), or None when the log does not reach back: load in full."""
        async with self._db.read() as connection:
            found = await changes.changed_since(connection, version)
            if found is None:
                return None
            now, rows = found
            by_kind: dict[str, list[int]] = {}
            for kind, row_id in rows:
                by_kind.setdefault(kind, []).append(row_id)
            moves: list[Move] = []
            for kind, ids in by_kind.items():
                moves += await self._moves(connection, kind, ids)
            return now, moves

    async def _moves(
        self, connection: AsyncConnection, kind: str, ids: Sequence[int]
    ) -> list[Move]:
        """A few queries for many rows of a kind, not a few for each."""
        if kind == "platform":
            return [Move("platform", PLATFORM_ID, encode_doc(await _platform(connection)))]
        moves = []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            near = await _read_near(connection, kind, some, self._unix_ms())
            for row_id in some:
                row = near.rows.get(row_id)
                doc = None if row is None else await self._doc(connection, kind, row, near)
                moves.append(Move(_kind(kind), row_id, None if doc is None else encode_doc(doc)))
        return moves

    async def _doc(
        self, connection: AsyncConnection, kind: str, row: dict[str, object], near: "_Near"
    ) -> Doc | None:
        match kind:
            case "tenant":
                name = str(row["name"])
                tenant_id = _int(row["id"])
                contract = contracts.in_force(near.contracts.get(tenant_id), near.at_ms)
                found = _limits(near, "tenant", tenant_id, f"tenant {name}")
                found["limits"] += _balance(contract, f"tenant {name}")
                return TenantDoc(
                    id=tenant_id,
                    name=name,
                    time_zone=str(row["time_zone"]),
                    currency=contract.currency if contract else DEFAULT_CURRENCY,
                    pays=contract is not None and contract.pays,
                    **_own_prices(near, tenant_id),
                    throughput=_throughput(near, tenant_id, name),
                    offline_credit_micro=_credit(near, tenant_id),
                    **found,
                )
            case "project":
                shown = f"project {near.owners[_int(row['tenant_id'])]}/{row['name']}"
                return ProjectDoc(
                    id=_int(row["id"]),
                    tenant_id=_int(row["tenant_id"]),
                    name=str(row["name"]),
                    usage_cost=bool(row["usage_cost"]),
                    offline_credit_micro=_credit(near, _int(row["id"])),
                    **_limits(near, "project", _int(row["id"]), shown),
                )
            case "key":
                return _key(row, near)
            case "pool":
                return await _pool(connection, row)
            case _:
                return await _model(connection, row, near.at_ms)


def _key(row: dict[str, object], near: "_Near") -> KeyDoc:
    key_id = _int(row["id"])
    path = f"{near.owners[_int(row['project_id'])]}/{row['name']}"
    expires_s = row["expires_s"]
    return KeyDoc(
        id=key_id,
        project_id=_int(row["project_id"]),
        name=str(row["name"]),
        path=path,
        secrets=tuple(
            SecretDoc(kid=kid, digest=bytes(digest), expires_s=_earlier(until, expires_s))
            for kid, digest, until in near.secrets.get(key_id, ())
            if row["revoked_ms"] is None
        ),
        models=models_of(row["models"] if isinstance(row["models"], str) else None),
        **_limits(near, "key", key_id, f"key {path}"),
    )


async def _pool(connection: AsyncConnection, row: dict[str, object]) -> Pool:
    found = await connection.execute(
        select(endpoints.c.id, endpoints.c.url, endpoints.c.options)
        .where(endpoints.c.pool_id == row["id"], endpoints.c.deleted_at.is_(None))
        .order_by(endpoints.c.id)
    )
    return Pool(
        id=_int(row["id"]),
        name=str(row["name"]),
        endpoints=tuple(
            msgspec.convert(
                {
                    "id": endpoint_id,
                    "pool_id": row["id"],
                    "url": url.rstrip("/").removesuffix("/v1"),
                    **json.loads(options),
                },
                Endpoint,
            )
            for endpoint_id, url, options in found
        ),
    )


async def _model(connection: AsyncConnection, row: dict[str, object], now_ms: int) -> ModelDoc:
    timeouts = msgspec.json.decode(str(row["timeouts"]), type=Timeouts)
    return ModelDoc(
        id=_int(row["id"]),
        name=str(row["name"]),
        upstream=str(row["upstream"]),
        pool_id=_int(row["pool_id"]),
        context_tokens=_maybe(row["context_tokens"]),
        max_output_tokens=_maybe(row["max_output_tokens"]),
        timeouts=timeouts,
        **await _prices(connection, _int(row["id"]), now_ms),
        created_s=_int(row["created_ms"]) // 1000,
    )


async def _platform(connection: AsyncConnection) -> PlatformDoc:
    """What all tenants share; a pool or model that is gone takes its limits along."""
    own = await _shared(connection, "platform", PLATFORM_ID, "A", "platform")
    found: dict[str, dict[int, tuple[Limit, ...]]] = {}
    for kind, scope in (("pool", "G"), ("model", "M")):
        table = _TABLES[kind]
        rows = await connection.execute(
            select(table.c.id, table.c.name)
            .where(
                table.c.deleted_at.is_(None),
                table.c.id.in_(select(limits.c.scope_id).where(limits.c.scope_kind == kind)),
            )
            .order_by(table.c.id)
        )
        found[kind] = {
            row.id: await _shared(
                connection, kind, row.id, f"{scope}{row.id}", f"{kind} {row.name}"
            )
            for row in rows
        }
    return PlatformDoc(limits=own, pool_limits=found["pool"], model_limits=found["model"])


async def _shared(
    connection: AsyncConnection, kind: str, row_id: int, scope: str, shown: str
) -> tuple[Limit, ...]:
    return tuple(
        [
            _limit(scope, shown, name, value, version)
            for name, value, version in await read_limits(connection, kind, row_id)
        ]
    )


class _Limits(TypedDict, total=False):
    limits: tuple[Limit, ...]
    model_limits: dict[int, tuple[Limit, ...]]
    user_limits: tuple[Limit, ...]


def _limits(near: "_Near", kind: str, row_id: int, shown: str) -> _Limits:
    """A scope's limits as its document has them; a model that is gone takes its limits along."""
    general: list[Limit] = []
    users: list[Limit] = []
    of_models: dict[int, list[Limit]] = {}
    scope = f"{kind[0]}{row_id}"
    for name, value, version in near.limits.get(row_id, ()):
        if name.window == OFFLINE:
            continue  # nothing is charged to it: see _credit
        if name.each:
            users.append(_limit(f"{scope}u", f"end user of {shown}", name, value, version))
        elif name.model_id:
            model = near.models.get(name.model_id)
            if model is not None:
                at, on = f"{scope}m{name.model_id}", f"{shown} on model {model}"
                limit = _limit(at, on, name, value, version)
                of_models.setdefault(name.model_id, []).append(limit)
        else:
            general.append(_limit(scope, shown, name, value, version))
    return {
        "limits": tuple(general),
        "model_limits": {model_id: tuple(each) for model_id, each in of_models.items()},
        "user_limits": tuple(users),
    }


def _credit(near: "_Near", row_id: int) -> int | None:
    """Money of the scope that may be spent while the store is away, in micro-units."""
    rows = near.limits.get(row_id, ())
    return next((value.value for name, value, _ in rows if name.window == OFFLINE), None)


def _balance(contract: Contract | None, shown: str) -> tuple[Limit, ...]:
    """What a contract lets its tenant owe is the capacity of a balance; () where it says nothing."""
    line = -1 if contract is None else contract.credit_bound()
    if contract is None or line < 0:
        return ()
    return (
        Limit(
            f"t{contract.tenant_id}",
            shown,
            "money",
            "balance",
            line // NANO_PER_MICRO,
            0,
            contract.version,
            "now",
        ),
    )


class _Prices(TypedDict):
    price: Price | None
    tiers: dict[str, Price]


class _OwnPrices(TypedDict):
    prices: dict[int, Price]
    tiers: dict[int, dict[str, Price]]


async def _prices(connection: AsyncConnection, model_id: int, at_ms: int) -> _Prices:
    """What a model costs everybody, tier by tier."""
    found = await catalog.prices_in_force(connection, model_id, at_ms)
    tiers = {tier: price for (tenant_id, tier), price in found.items() if not tenant_id}
    return {"price": tiers.pop(DEFAULT_TIER, None), "tiers": tiers}


def _own_prices(near: "_Near", tenant_id: int) -> _OwnPrices:
    """What a tenant pays in place of it, by model."""
    made: _OwnPrices = {"prices": {}, "tiers": {}}
    for (model_id, tier), price in near.prices.get(tenant_id, {}).items():
        if tier == DEFAULT_TIER:
            made["prices"][model_id] = price
        else:
            made["tiers"].setdefault(model_id, {})[tier] = price
    return made


def _throughput(near: "_Near", tenant_id: int, name: str) -> dict[int, Throughput]:
    """What a tenant has reserved and was sold, by model: the newest of each."""
    found = {}
    for term in near.terms.get(tenant_id, ()):
        model = near.models.get(term.model_id)
        if not term.accepted_ms or model is None:
            continue
        rate = min(term.tokens_per_minute, MAX_UNITS)
        found[term.model_id] = Throughput(
            limit=Limit(
                f"t{tenant_id}m{term.model_id}r{term.id}",
                f"reserved throughput of tenant {name} on model {model}",
                "tokens",
                "bucket",
                rate,
                rate,
                term.id,
                outage="local_share",
            ),
            spills=term.overflow == "spill",
            from_ms=term.accepted_ms,
            until_ms=term.until_ms,
        )
    return found


def _limit(scope: str, shown: str, name: LimitName, value: LimitValue, version: int) -> Limit:
    window: Window = msgspec.convert(name.window, Window)
    algorithm = _ALGORITHMS[window]
    return Limit(
        scope,
        shown,
        msgspec.convert(name.dimension, Dimension),
        algorithm,
        value.value if value.burst is None else value.burst,
        value.value if algorithm == "bucket" else 0,
        version,
        window,
        value.shadow,
        value.cached_permille,
        msgspec.convert(value.outage, Outage),
    )


class _Near(msgspec.Struct, kw_only=True):
    """Living rows of one kind by id, and what their documents need of other tables: limits, names of
    living models, the path of who owns a project or a key, secrets, contracts (newest first), prices,
    throughput terms. ``at_ms``: as of when.
    """

    rows: dict[int, dict[str, object]]
    at_ms: int
    limits: dict[int, list[tuple[LimitName, LimitValue, int]]] = {}
    models: dict[int, str] = {}
    owners: dict[int, str] = {}
    secrets: dict[int, list[tuple[str, bytes, int | None]]] = {}
    contracts: dict[int, list[Contract]] = {}
    prices: dict[int, dict[tuple[int, str], Price]] = {}
    terms: dict[int, list[ThroughputTerm]] = {}


async def _read_near(
    connection: AsyncConnection, kind: str, ids: Sequence[int], at_ms: int
) -> _Near:
    table = _TABLES[kind]
    query = select(table).where(table.c.id.in_(ids), table.c.deleted_at.is_(None))
    rows = (await connection.execute(query)).mappings()
    near = _Near(rows={row["id"]: dict(row) for row in rows}, at_ms=at_ms)
    if not near.rows or kind in ("pool", "model"):
        return near
    near.limits = await read_limits_of(connection, kind, ids)
    if kind == "tenant":
        near.contracts = await contracts.contracts_of(connection, ids)
        near.prices = await catalog.prices_of_tenants(connection, ids, at_ms)
        near.terms = await contracts.terms_of(connection, ids)
    if near.terms or any(name.model_id for each in near.limits.values() for name, *_ in each):
        living = select(models.c.id, models.c.name).where(models.c.deleted_at.is_(None))
        near.models = {row.id: row.name for row in await connection.execute(living)}
    match kind:
        case "project":
            named = select(tenants.c.id, tenants.c.name.label("path"))
            near.owners = await _owners(connection, named, tenants, near, "tenant_id")
        case "key":
            path = (tenants.c.name + "/" + projects.c.name).label("path")
            named = select(projects.c.id, path).join(tenants, tenants.c.id == projects.c.tenant_id)
            near.owners = await _owners(connection, named, projects, near, "project_id")
            secrets = await connection.execute(
                select(key_secrets).where(key_secrets.c.key_id.in_(ids)).order_by(key_secrets.c.kid)
            )
            for secret in secrets:
                found = (secret.kid, bytes(secret.digest), secret.expires_s)
                near.secrets.setdefault(secret.key_id, []).append(found)
    return near


async def _owners(
    connection: AsyncConnection, named: Select[Any], table: Table, near: _Near, column: str
) -> dict[int, str]:
    wanted = sorted({_int(row[column]) for row in near.rows.values()})
    return {
        row.id: row.path for row in await connection.execute(named.where(table.c.id.in_(wanted)))
    }


def _earlier(left: object, right: object) -> int | None:
    known = [each for each in (left, right) if isinstance(each, int)]
    return min(known, default=None)


def _kind(kind: str) -> Kind:
    kept: Kind = msgspec.convert(kind, Kind)
    return kept


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _maybe(value: object) -> int | None:
    return value if isinstance(value, int) else None
