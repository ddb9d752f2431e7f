"""Tenants, projects and keys: rows in and out, by path. Every write takes the caller's transaction.

Not here: what a key looks like (``gateway.identity``), files (``gateway.declared``).
"""

import json
import re

import msgspec
from sqlalchemy import RowMapping, Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.identity import MintedKey
from gateway.store.schema import key_secrets, keys, projects, tenants

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}\Z")
#: How long an old secret of a rotated key still works.
ROTATION_OVERLAP_S = 7 * 86_400


class NotFound(Exception):
    """No such row; the message names the path."""


class Conflict(Exception):
    """The name is taken, or the row is in a state that forbids it."""


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key as operators see it. Times: Unix seconds and milliseconds."""

    id: int
    path: str
    models: tuple[str, ...] | None
    expires_s: int | None
    created_ms: int
    revoked_ms: int | None
    kids: tuple[str, ...]


async def live_id(connection: AsyncConnection, table: object, **names: object) -> int | None:
    """The id of the living row with these column values."""
    query = select(table.c.id).where(table.c.deleted_at.is_(None))  # type: ignore[attr-defined]
    for column, value in names.items():
        query = query.where(table.c[column] == value)  # type: ignore[attr-defined]
    found = await connection.scalar(query)
    return None if found is None else int(found)


async def was_ever(connection: AsyncConnection, table: Table, name: str) -> bool:
    """Whether a row has or had this name, deleted ones included."""
    found = await connection.scalar(select(table.c.id).where(table.c.name == name).limit(1))
    return found is not None


async def insert_row(connection: AsyncConnection, table: object, **values: object) -> int:
    """A new row's id."""
    result = await connection.execute(insert(table).values(**values))  # type: ignore[arg-type]
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


async def ensure_project(connection: AsyncConnection, tenant: str, project: str) -> int:
    """The project's id; it and its tenant are made where they are missing."""
    tenant_id = await live_id(connection, tenants, name=tenant)
    if tenant_id is None:
        raise NotFound(f"no tenant {tenant}")
    project_id = await live_id(connection, projects, tenant_id=tenant_id, name=project)
    if project_id is None:
        raise NotFound(f"no project {tenant}/{project}")
    return project_id


def split_path(path: str) -> tuple[str, str, str]:
    """``tenant/project/key``; raises ``ValueError`` naming what was expected."""
    parts = path.split("/")
    if len(parts) != 3 or not all(_NAME.match(part) for part in parts):  # noqa: PLR2004
        raise ValueError(
            f"key path {path!r}: expected tenant/project/key, each of letters, digits and . _ : -"
        )
    return parts[0], parts[1], parts[2]


async def find_key(connection: AsyncConnection, path: str) -> int:
    tenant, project, name = split_path(path)
    project_id = await ensure_project(connection, tenant, project)
    key_id = await live_id(connection, keys, project_id=project_id, name=name)
    if key_id is None:
        raise NotFound(f"no key {path}")
    return key_id


async def create_key(
    connection: AsyncConnection,
    project_id: int,
    name: str,
    models: tuple[str, ...] | None,
    expires_s: int | None,
    now_ms: int,
) -> int:
    if await live_id(connection, keys, project_id=project_id, name=name) is not None:
        raise Conflict(f"the key {name} exists already; rotate it for a new secret")
    return await insert_row(
        connection,
        keys,
        project_id=project_id,
        name=name,
        models=None if models is None else json.dumps(list(models)),
        expires_s=expires_s,
        created_ms=now_ms,
    )


async def add_secret(
    connection: AsyncConnection, key_id: int, minted: MintedKey, digest: bytes, now_ms: int
) -> None:
    await connection.execute(
        insert(key_secrets).values(
            kid=minted.kid,
            key_id=key_id,
            digest=digest,
            last4=minted.last4,
            created_ms=now_ms,
        )
    )


async def rotate(
    connection: AsyncConnection, key_id: int, minted: MintedKey, digest: bytes, now_ms: int
) -> None:
    """A new secret beside the old one, which works on for a week; older ones end now."""
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).mappings().one()
    if row["revoked_ms"] is not None:
        raise Conflict("the key is revoked; create another")
    now_s = now_ms // 1000
    await connection.execute(
        delete(key_secrets).where(
            key_secrets.c.key_id == key_id, key_secrets.c.expires_s.is_not(None)
        )
    )
    await connection.execute(
        update(key_secrets)
        .where(key_secrets.c.key_id == key_id)
        .values(expires_s=now_s + ROTATION_OVERLAP_S)
    )
    await add_secret(connection, key_id, minted, digest, now_ms)


async def revoke(connection: AsyncConnection, key_id: int, now_ms: int) -> None:
    """The key ends now; its secrets are forgotten. Safe to repeat."""
    await connection.execute(delete(key_secrets).where(key_secrets.c.key_id == key_id))
    await connection.execute(
        update(keys)
        .where(keys.c.id == key_id, keys.c.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
    )


async def list_keys(connection: AsyncConnection) -> list[KeyRow]:
    """Every living key, by path."""
    kids: dict[int, list[str]] = {}
    for key_id, kid in await connection.execute(
        select(key_secrets.c.key_id, key_secrets.c.kid).order_by(key_secrets.c.created_ms)
    ):
        kids.setdefault(key_id, []).append(kid)
    rows = await connection.execute(
        select(
            keys,
            tenants.c.name.label("tenant"),
            projects.c.name.label("project"),
        )
        .join(projects, keys.c.project_id == projects.c.id)
        .join(tenants, projects.c.tenant_id == tenants.c.id)
        .where(keys.c.deleted_at.is_(None))
        .order_by(tenants.c.name, projects.c.name, keys.c.name)
    )
    return [_key_row(row, kids.get(row["id"], [])) for row in rows.mappings()]


def _key_row(row: RowMapping, kids: list[str]) -> KeyRow:
    return KeyRow(
        id=row["id"],
        path=f"{row['tenant']}/{row['project']}/{row['name']}",
        models=models_of(row["models"]),
        expires_s=row["expires_s"],
        created_ms=row["created_ms"],
        revoked_ms=row["revoked_ms"],
        kids=tuple(kids),
    )


def models_of(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))
