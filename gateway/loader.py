"""SQL to the documents that data processes know: a full load, or what changed since a version.

Read only. Not here: who is told (``gateway.control.feed``), what they do with it.
"""

import json
from typing import TypedDict

import msgspec
from sqlalchemy import select
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
from gateway.store.limits import LimitName, LimitValue, read_limits
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
from quotas.contracts import Contract
from quotas.limits import Algorithm, Dimension, Limit, Outage, Window
from routing.topology import Endpoint, Pool

_TABLES = {"tenant": tenants, "project": projects, "key": keys, "model": models, "pool": pools}
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
    """One per control process."""

    def __init__(self, db: Database) -> None:
        self._db = db

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
                moves += [await self._move(connection, kind, row_id) for row_id in ids.all()]
            moves.append(await self._move(connection, "platform", PLATFORM_ID))
            return version, moves

    async def since(self, version: int) -> tuple[int, list[Move]] | None:
        """(version now, what changed), or None when the log does not reach back: load in full."""
        async with self._db.read() as connection:
            found = await changes.changed_since(connection, version)
            if found is None:
                return None
            now, rows = found
            return now, [await self._move(connection, kind, row_id) for kind, row_id in rows]

    async def _move(self, connection: AsyncConnection, kind: str, row_id: int) -> Move:
        if kind == "platform":
            return Move("platform", PLATFORM_ID, encode_doc(await _platform(connection)))
        table = _TABLES[kind]
        query = select(table).where(table.c.id == row_id, table.c.deleted_at.is_(None))
        row = (await connection.execute(query)).mappings().one_or_none()
        doc = None if row is None else await self._doc(connection, kind, dict(row))
        return Move(_kind(kind), row_id, None if doc is None else encode_doc(doc))

    async def _doc(
        self, connection: AsyncConnection, kind: str, row: dict[str, object]
    ) -> Doc | None:
        match kind:
            case "tenant":
                name = str(row["name"])
                tenant_id = _int(row["id"])
                contract = await contracts.newest(connection, tenant_id)
                found = await _limits(connection, "tenant", tenant_id, f"tenant {name}")
                found["limits"] += _balance(contract, f"tenant {name}")
                return TenantDoc(
                    id=tenant_id,
                    name=name,
                    time_zone=str(row["time_zone"]),
                    currency=contract.currency if contract else DEFAULT_CURRENCY,
                    pays=contract is not None and contract.pays,
                    prices=await catalog.prices_of_tenant(connection, tenant_id),
                    throughput=await _throughput(connection, tenant_id, name),
                    **found,
                )
            case "project":
                tenant = await _name(connection, "tenant", _int(row["tenant_id"]))
                shown = f"project {tenant}/{row['name']}"
                return ProjectDoc(
                    id=_int(row["id"]),
                    tenant_id=_int(row["tenant_id"]),
                    name=str(row["name"]),
                    usage_cost=bool(row["usage_cost"]),
                    **await _limits(connection, "project", _int(row["id"]), shown),
                )
            case "key":
                return await _key(connection, row)
            case "pool":
                return await _pool(connection, row)
            case _:
                return await _model(connection, row)


async def _key(connection: AsyncConnection, row: dict[str, object]) -> KeyDoc:
    key_id = _int(row["id"])
    project = (
        (await connection.execute(select(projects).where(projects.c.id == row["project_id"])))
        .mappings()
        .one()
    )
    tenant = await _name(connection, "tenant", project["tenant_id"])
    path = f"{tenant}/{project['name']}/{row['name']}"
    expires_s = row["expires_s"]
    secrets = await connection.execute(
        select(key_secrets.c.kid, key_secrets.c.digest, key_secrets.c.expires_s).where(
            key_secrets.c.key_id == key_id
        )
    )
    return KeyDoc(
        id=key_id,
        project_id=_int(row["project_id"]),
        name=str(row["name"]),
        path=path,
        secrets=tuple(
            SecretDoc(kid=kid, digest=bytes(digest), expires_s=_earlier(until, expires_s))
            for kid, digest, until in secrets
            if row["revoked_ms"] is None
        ),
        models=models_of(row["models"] if isinstance(row["models"], str) else None),
        **await _limits(connection, "key", key_id, f"key {path}"),
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


async def _model(connection: AsyncConnection, row: dict[str, object]) -> ModelDoc:
    timeouts = msgspec.json.decode(str(row["timeouts"]), type=Timeouts)
    return ModelDoc(
        id=_int(row["id"]),
        name=str(row["name"]),
        upstream=str(row["upstream"]),
        pool_id=_int(row["pool_id"]),
        context_tokens=_maybe(row["context_tokens"]),
        max_output_tokens=_maybe(row["max_output_tokens"]),
        timeouts=timeouts,
        price=await catalog.price_in_force(connection, _int(row["id"])),
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


async def _limits(connection: AsyncConnection, kind: str, row_id: int, shown: str) -> _Limits:
    """A scope's limits as its document has them; a model that is gone takes its limits along."""
    general: list[Limit] = []
    users: list[Limit] = []
    of_models: dict[int, list[Limit]] = {}
    scope = f"{kind[0]}{row_id}"
    for name, value, version in await read_limits(connection, kind, row_id):
        if name.each:
            users.append(_limit(f"{scope}u", f"end user of {shown}", name, value, version))
        elif name.model_id:
            model = await _live_model(connection, name.model_id)
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


async def _throughput(
    connection: AsyncConnection, tenant_id: int, name: str
) -> dict[int, Throughput]:
    """What a tenant has reserved and was sold, by model: the newest of each."""
    found = {}
    for term in (await contracts.terms_of(connection, [tenant_id])).get(tenant_id, []):
        model = await _live_model(connection, term.model_id)
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


async def _live_model(connection: AsyncConnection, model_id: int) -> str | None:
    query = select(models.c.name).where(models.c.id == model_id, models.c.deleted_at.is_(None))
    found = await connection.scalar(query)
    return None if found is None else str(found)


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


async def _name(connection: AsyncConnection, kind: str, row_id: int) -> str:
    table = _TABLES[kind]
    return str(await connection.scalar(select(table.c.name).where(table.c.id == row_id)))


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
