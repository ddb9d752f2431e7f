"""``/admin/v1/limits``: what limits there are, and changing those of one scope.

A change reaches every data process within a second and resets no usage. Not here: the declared file
(``gateway.declared``), levels (``gateway.control.explanations``).
"""

from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.declared.limits import CREDIT_OF, DECLARED_AS, NAMES, ScopeLimits, shown
from gateway.store import changes
from gateway.store.accounts import NotFound, live_id
from gateway.store.database import Database
from gateway.store.limits import (
    SHARED_KINDS,
    LimitName,
    LimitValue,
    changed_row,
    drop_limit,
    find_scope,
    list_limits,
    set_limits,
)
from gateway.store.schema import models


class LimitsChange(BaseModel):
    """``limits``: those to set, each as the file would say it; ``remove``: names of those to end."""

    model_config = ConfigDict(extra="forbid")
    path: str
    model: str | None = None
    end_user: bool = False
    limits: ScopeLimits = ScopeLimits()
    remove: list[str] = []


class LimitsDesk:
    """``changed`` runs after a write."""

    def __init__(self, db: Database, changed: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._changed = changed

    async def list(self, under: str) -> list[dict[str, object]]:
        """Raises ``NotFound`` for a path that nothing has."""
        async with self._db.read() as connection:
            if under:
                await find_scope(connection, under)
            rows = await list_limits(connection, under)
        return [
            {
                "path": row.path,
                "name": DECLARED_AS[row.name.dimension, row.name.window],
                "model": row.model or None,
                "end_user": row.name.each == "user",
                **shown(row.name, row.value),
                "version": row.version,
            }
            for row in rows
        ]

    async def change(self, wanted: LimitsChange) -> dict[str, object]:
        """Raises ``NotFound`` and ``ValueError``."""
        if wanted.model is not None and wanted.end_user:
            raise ValueError("a limit is of one model or of each end user, not of both")
        async with self._db.begin() as connection:
            kind, scope_id = await find_scope(connection, wanted.path)
            if kind in SHARED_KINDS:
                _check_shared(wanted)
            elif wanted.limits.offline_credit and (
                kind == "key" or wanted.model is not None or wanted.end_user
            ):
                raise ValueError(CREDIT_OF)
            model_id = await self._model_id(connection, wanted.model)
            each = "user" if wanted.end_user else ""
            values: dict[LimitName, LimitValue] = {
                LimitName(*what, model_id=model_id, each=each): value
                for what, value in wanted.limits.values().items()
            }
            changed = await set_limits(connection, kind, scope_id, values, keep=True)
            for name in wanted.remove:
                if name not in NAMES:
                    raise ValueError(f"{name!r} is no limit; expected one of {', '.join(NAMES)}")
                limit = LimitName(*NAMES[name], model_id=model_id, each=each)
                if not await drop_limit(connection, kind, scope_id, limit):
                    raise NotFound(f"{wanted.path} has no limit {name} there")
                changed = True
            rows = [changed_row(kind, scope_id)] if changed else []
            version = (
                await changes.bump(connection, rows) if rows else await changes.current(connection)
            )
        if changed:
            await self._changed()
        return {"path": wanted.path, "changed": changed, "version": version}

    async def _model_id(self, connection: AsyncConnection, name: str | None) -> int:
        if name is None:
            return 0
        model_id = await live_id(connection, models, name=name)
        if model_id is None:
            raise NotFound(f"no model {name}")
        return model_id


def _check_shared(wanted: LimitsChange) -> None:
    """What all tenants share is limited as a whole. Raises ``ValueError``."""
    if wanted.model is not None or wanted.end_user:
        raise ValueError(f"{wanted.path} has limits as a whole: no model, no end user")
    for dimension, _ in wanted.limits.values():
        if dimension == "money":
            raise ValueError("money is limited for tenants, projects and keys")
