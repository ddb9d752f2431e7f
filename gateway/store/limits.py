"""Limits as rows: what one scope's are, and bringing them to what is wanted. Rows are versioned.

A row's name is its scope, the model it is for (0 = every one), whether it is of each end user, its
dimension and its window; the rest may change without its usage being reset. Not here: what a limit
does (``quotas.limits``), the declared names (``gateway.declared.limits``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.accounts import NotFound, ensure_project, find_key, live_id
from gateway.store.schema import keys, limits, models, pools, projects, tenants

#: What all tenants share has paths that are no tenant's: "@platform", "@pool/gpu-a", "@model/llama".
PLATFORM = "@platform"
SHARED_TABLES = {"pool": pools, "model": models}
#: Scopes whose limits all tenants share; they are one document.
SHARED_KINDS = ("platform", "pool", "model")
PLATFORM_ID = 1
#: The window of money that a tenant or project may spend while the store is away.
OFFLINE = "offline"


class LimitName(msgspec.Struct, frozen=True):
    """Which limit of a scope. ``each``: "" for the scope itself, "user" for each of its end users."""

    dimension: str
    window: str
    model_id: int = 0
    each: str = ""


class LimitValue(msgspec.Struct, frozen=True):
    """What may change. Money in micro-units; ``burst`` of a bucket, None = ``value``."""

    value: int
    burst: int | None = None
    cached_permille: int = 1000
    shadow: bool = False
    outage: str = "fail_closed"


async def read_limits(
    connection: AsyncConnection, scope_kind: str, scope_id: int
) -> list[tuple[LimitName, LimitValue, int]]:
    """Name, value and version of every limit of a scope, oldest first."""
    return (await read_limits_of(connection, scope_kind, [scope_id])).get(scope_id, [])


async def read_limits_of(
    connection: AsyncConnection, scope_kind: str, scope_ids: Sequence[int]
) -> dict[int, list[tuple[LimitName, LimitValue, int]]]:
    """The same of many scopes of a kind, by id; one without limits is missing."""
    rows = await connection.execute(
        select(limits)
        .where(limits.c.scope_kind == scope_kind, limits.c.scope_id.in_(scope_ids))
        .order_by(limits.c.id)
    )
    found: dict[int, list[tuple[LimitName, LimitValue, int]]] = {}
    for row in map(dict, rows.mappings()):
        limit = (_name(row), _value(row), row["version"])
        found.setdefault(row["scope_id"], []).append(limit)
    return found


async def set_limits(
    connection: AsyncConnection,
    scope_kind: str,
    scope_id: int,
    wanted: Mapping[LimitName, LimitValue],
    *,
    keep: bool = False,
) -> bool:
    """Bring a scope's limits to ``wanted``; with ``keep`` those not named stay. True when any changed."""
    scope = (limits.c.scope_kind == scope_kind, limits.c.scope_id == scope_id)
    rows = await read_limits(connection, scope_kind, scope_id)
    known = {name: (value, version) for name, value, version in rows}
    changed = False
    for name, value in wanted.items():
        before = known.pop(name, None)
        if before is not None and before[0] == value:
            continue
        changed = True
        columns = _columns(value)
        if before is None:
            named = msgspec.structs.asdict(name)
            await connection.execute(
                insert(limits).values(
                    scope_kind=scope_kind, scope_id=scope_id, version=1, **named, **columns
                )
            )
        else:
            await connection.execute(
                update(limits).where(*scope, *_where(name)).values(version=before[1] + 1, **columns)
            )
    if not keep:
        for name in known:
            changed |= await drop_limit(connection, scope_kind, scope_id, name)
    return changed


async def drop_limit(
    connection: AsyncConnection, scope_kind: str, scope_id: int, name: LimitName
) -> bool:
    """End a limit; False where there is none."""
    done = await connection.execute(
        delete(limits).where(
            limits.c.scope_kind == scope_kind, limits.c.scope_id == scope_id, *_where(name)
        )
    )
    return done.rowcount > 0


def _where(name: LimitName) -> tuple[Any, ...]:
    return tuple(
        limits.c[column] == value for column, value in msgspec.structs.asdict(name).items()
    )


def _name(row: Mapping[str, Any]) -> LimitName:
    return LimitName(row["dimension"], row["window"], row["model_id"], row["each"])


def _value(row: Mapping[str, Any]) -> LimitValue:
    return LimitValue(
        row["value"], row["burst"], row["cached_permille"], bool(row["shadow"]), row["outage"]
    )


def _columns(value: LimitValue) -> dict[str, object]:
    return msgspec.structs.asdict(value) | {"shadow": int(value.shadow)}


class ScopedLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as operators see it. ``model`` and ``each`` are "" for all of them."""

    path: str
    kind: str
    model: str
    name: LimitName
    value: LimitValue
    version: int


async def find_scope(connection: AsyncConnection, path: str) -> tuple[str, int]:
    """(kind, id) of ``acme``, ``acme/chatbot`` or ``acme/chatbot/ci``, or of what all tenants share.
    Raises ``NotFound``.
    """
    if path == PLATFORM:
        return "platform", PLATFORM_ID
    if path.startswith("@"):
        kind, _, name = path[1:].partition("/")
        table = SHARED_TABLES.get(kind)
        if table is None or not name:
            raise NotFound(f"no scope {path}; expected @platform, @pool/NAME or @model/NAME")
        row_id = await live_id(connection, table, name=name)
        if row_id is None:
            raise NotFound(f"no {kind} {name}")
        return kind, row_id
    parts = path.split("/")
    if len(parts) == 3:  # noqa: PLR2004 -- tenant, project, key
        return "key", await find_key(connection, path)
    if len(parts) == 2:  # noqa: PLR2004 -- tenant, project
        return "project", await ensure_project(connection, *parts)
    tenant_id = await live_id(connection, tenants, name=path)
    if tenant_id is None:
        raise NotFound(f"no tenant {path}")
    return "tenant", tenant_id


async def list_limits(connection: AsyncConnection, under: str = "") -> list[ScopedLimit]:
    """Every limit of living scopes, by path; ``under`` a path, that one and what it owns."""
    of_models = {
        row.id: row.name for row in await connection.execute(select(models.c.id, models.c.name))
    }
    found = []
    for kind, query in _PATHS.items():
        paths = {row.id: row.path for row in await connection.execute(query)}
        rows = await connection.execute(
            select(limits).where(limits.c.scope_kind == kind).order_by(limits.c.id)
        )
        for row in map(dict, rows.mappings()):
            path = paths.get(row["scope_id"])
            if path is None or (under and path != under and not path.startswith(under + "/")):
                continue
            found.append(
                ScopedLimit(
                    path=path,
                    kind=kind,
                    model=of_models.get(row["model_id"], ""),
                    name=_name(row),
                    value=_value(row),
                    version=row["version"],
                )
            )
    return sorted(found, key=lambda each: each.path.split("/"))


def changed_row(kind: str, scope_id: int) -> tuple[str, int]:
    """The document that a change of a scope's limits changes, for the change log."""
    return ("platform", PLATFORM_ID) if kind in SHARED_KINDS else (kind, scope_id)


_PROJECT_PATH = tenants.c.name + "/" + projects.c.name
_PATHS = {
    "platform": select(literal(PLATFORM_ID).label("id"), literal(PLATFORM).label("path")),
    **{
        kind: select(table.c.id, (literal(f"@{kind}/") + table.c.name).label("path")).where(
            table.c.deleted_at.is_(None)
        )
        for kind, table in SHARED_TABLES.items()
    },
    "tenant": select(tenants.c.id, tenants.c.name.label("path")).where(
        tenants.c.deleted_at.is_(None)
    ),
    "project": select(projects.c.id, _PROJECT_PATH.label("path"))
    .join(tenants, projects.c.tenant_id == tenants.c.id)
    .where(projects.c.deleted_at.is_(None)),
    "key": select(keys.c.id, (_PROJECT_PATH + "/" + keys.c.name).label("path"))
    .join(projects, keys.c.project_id == projects.c.id)
    .join(tenants, projects.c.tenant_id == tenants.c.id)
    .where(keys.c.deleted_at.is_(None)),
}
