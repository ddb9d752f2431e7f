"""Bring the database to what a file says: upsert by name, in one transaction.

An object named in the file becomes what the file says of it; a price that the file leaves out stays.
Nothing is removed but with ``prune``. What changed is bumped as one version of the change log.
"""

import json
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import identity
from gateway.declared.contracts import SharePart
from gateway.declared.document import (
    Declared,
    DeclaredError,
    KeyPart,
    ModelPart,
    PoolPart,
    ProjectPart,
    TenantPart,
)
from gateway.declared.limits import LimitsPart, SharedLimits
from gateway.declared.prices import PricePart
from gateway.store import accounts, catalog, changes, contracts, publishers
from gateway.store import sinks as receivers
from gateway.store.database import Database
from gateway.store.limits import PLATFORM, PLATFORM_ID, changed_row, set_limits
from gateway.store.schema import endpoints, keys, models, pools, projects, sinks, tenants
from gateway.store.schema import publishers as schema_publishers
from quotas.money import parse_price
from quotas.pricing import DEFAULT_TIER


class Applied(msgspec.Struct):
    """Paths by kind (pools, endpoints, publishers, models, tenants, ...); secrets of new keys only."""

    version: int = 0
    created: dict[str, list[str]] = {}
    updated: dict[str, list[str]] = {}
    removed: dict[str, list[str]] = {}
    keys: list[dict[str, str]] = []


class _DryRun(Exception):
    """Rolls the transaction back: a plan is an apply that did not happen."""


class Applier:
    """``mint`` gives new keys; ``digest`` what is kept of one."""

    def __init__(
        self,
        db: Database,
        *,
        mint: Callable[[], identity.MintedKey],
        digest: Callable[[str], bytes],
        now_ms: Callable[[], int],
    ) -> None:
        self._db = db
        self._mint = mint
        self._digest = digest
        self._now_ms = now_ms

    async def apply(
        self, declared: Declared, file: str, *, prune: bool = False, dry_run: bool = False
    ) -> Applied:
        """Raises ``DeclaredError`` for a name that the file uses and nobody has."""
        applied = Applied()
        try:
            async with self._db.begin() as connection:
                run = _Run(self, connection, declared, file, applied)
                await run.all(prune=prune)
                if dry_run:
                    raise _DryRun  # noqa: TRY301 -- what rolls the transaction back
        except _DryRun:
            applied.keys = []
        return applied


class _Run:
    """One transaction of an apply."""

    def __init__(
        self,
        applier: Applier,
        connection: AsyncConnection,
        declared: Declared,
        file: str,
        applied: Applied,
    ) -> None:
        self._applier = applier
        self._connection = connection
        self._declared = declared
        self._file = file
        self._applied = applied
        self._rows: list[tuple[str, int]] = []
        self._seen: dict[str, set[int]] = {}
        self._now_ms = applier._now_ms()  # noqa: SLF001 -- one of two halves

    async def all(self, *, prune: bool) -> None:
        if self._declared.limits is not None:
            await self._shared("platform", PLATFORM_ID, PLATFORM, self._declared.limits)
        for pool in self._declared.pools:
            await self._pool(pool)
        for publisher in self._declared.publishers:
            await self._named("publishers", schema_publishers, publisher.name, name=publisher.name)
        for index, model in enumerate(self._declared.models):
            await self._model(index, model)
        for tenant in self._declared.tenants:
            tenant_id = await self._tenant(tenant)
            await self._buys(tenant_id, tenant)
            await self._limits("tenant", tenant_id, tenant.name, tenant.limits)
            for project in tenant.projects:
                path = f"{tenant.name}/{project.name}"
                project_id = await self._project(tenant_id, path, project)
                await self._limits("project", project_id, path, project.limits)
                for key in project.keys:
                    await self._key(project_id, f"{path}/{key.name}", key)
        for sink in self._declared.sinks:
            await self._sink("sink", sink.name, sink.options(), sink.start)
        for webhook in self._declared.webhooks:
            await self._sink("webhook", webhook.name, webhook.options(), "now")
        if prune:
            await self._prune()
        if self._rows:
            self._applied.version = await changes.bump(self._connection, self._rows)
        else:
            self._applied.version = await changes.current(self._connection)

    # -- one noun each -----------------------------------------------------------------------

    async def _pool(self, part: PoolPart) -> None:
        pool_id = await self._named("pools", pools, part.name, name=part.name)
        await self._shared("pool", pool_id, part.name, part.limits)
        for endpoint in part.endpoints:
            options = endpoint.model_dump(exclude={"url", "cost"}, mode="json")
            text = json.dumps(options, sort_keys=True)
            path = f"{part.name} {endpoint.url}"
            known = await accounts.live_id(
                self._connection, endpoints, pool_id=pool_id, url=endpoint.url
            )
            endpoint_id = await self._named(
                "endpoints", endpoints, path, {"options": text}, pool_id=pool_id, url=endpoint.url
            )
            cost = None if endpoint.cost is None else endpoint.cost.cost()
            if await publishers.set_cost(self._connection, endpoint_id, cost, self._now_ms):
                self._note_change("endpoints", path)
            if known is not None:
                old = await self._connection.scalar(
                    select(endpoints.c.options).where(endpoints.c.id == endpoint_id)
                )
                if old == text:
                    continue
                await self._set(endpoints, endpoint_id, options=text)
                self._note_change("endpoints", path)
            self._rows.append(("pool", pool_id))

    async def _model(self, index: int, part: ModelPart) -> None:
        pool_id = await accounts.live_id(self._connection, pools, name=part.pool)
        if pool_id is None:
            raise DeclaredError(
                f"{self._file}: models[{index}].pool: {part.pool!r}: expected the name of a pool "
                "in this file or applied before"
            )
        wanted: dict[str, object] = {
            "upstream": part.upstream or part.name,
            "pool_id": pool_id,
            "context_tokens": part.context_tokens,
            "max_output_tokens": part.max_output_tokens,
            "timeouts": json.dumps(part.timeouts.model_dump(), sort_keys=True),
        }
        known = await accounts.live_id(self._connection, models, name=part.name)
        model_id = await self._named(
            "models", models, part.name, {**wanted, "created_ms": self._now_ms}, name=part.name
        )
        changed = known is not None and await self._differs(models, model_id, wanted)
        priced = part.price is not None and await self._price(model_id, part.price)
        shared = part.shares is not None and await self._shares(index, model_id, part.shares)
        changed = changed or ((priced or shared) and known is not None)
        if changed:
            await self._set(models, model_id, **wanted)
            self._note("updated", "models", part.name)
            self._rows.append(("model", model_id))
        await self._shared("model", model_id, part.name, part.limits)

    async def _price(self, model_id: int, part: PricePart, tenant_id: int = 0) -> bool:
        """The price and its tiers, for everybody or for one tenant; whether anything changed."""
        at_ms = max(part.from_ms, self._now_ms)
        changed = await catalog.unplan_prices(
            self._connection, model_id, tenant_id, self._now_ms, at_ms
        )
        now = await catalog.prices_in_force(self._connection, model_id, at_ms)
        tiers = {tier: price.multiplier_ppm for (of, tier), price in now.items() if of == 0}
        tiers.pop(DEFAULT_TIER, None)
        wanted = part.prices(tenant_id, tiers if tenant_id else None)
        kept = {where for where in now if where[0] != tenant_id}
        kept |= {(tenant_id, price.tier) for price in wanted}
        changed = await catalog.end_prices(self._connection, model_id, kept, at_ms) or changed
        for price in wanted:
            made = await catalog.set_price(self._connection, model_id, price, at_ms)
            changed = made or changed
        return changed

    async def _shares(self, index: int, model_id: int, parts: Sequence[SharePart]) -> bool:
        shares = []
        for part in parts:
            row_id = await accounts.live_id(
                self._connection, schema_publishers, name=part.publisher
            )
            if row_id is None:
                raise DeclaredError(
                    f"{self._file}: models[{index}].shares: {part.publisher!r}: expected the name "
                    "of a publisher in this file or applied before"
                )
            shares.append(part.share(row_id))
        return await publishers.set_shares(self._connection, model_id, shares, self._now_ms)

    async def _buys(self, tenant_id: int, part: TenantPart) -> None:
        """A tenant's contract and its own prices; what the file leaves out stays."""
        changed = False
        if part.contract is not None:
            wanted = part.contract.contract(tenant_id)
            changed = await contracts.set_contract(self._connection, wanted, self._now_ms)
        for index, own in enumerate(part.prices or ()):
            model_id = await accounts.live_id(self._connection, models, name=own.model)
            if model_id is None:
                raise DeclaredError(
                    f"{self._file}: tenant {part.name}: prices[{index}].model: {own.model!r}: "
                    "expected the name of a model in this file or applied before"
                )
            changed = await self._price(model_id, own, tenant_id) or changed
        if changed:
            self._note_change("tenants", part.name)
            self._rows.append(("tenant", tenant_id))

    async def _project(self, tenant_id: int, path: str, part: ProjectPart) -> int:
        project_id = await self._named(
            "projects", projects, path, tenant_id=tenant_id, name=part.name
        )
        wanted: dict[str, object] = {"usage_cost": int(part.usage_cost or False)}
        if part.usage_cost is not None and await self._differs(projects, project_id, wanted):
            await self._set(projects, project_id, **wanted)
            self._note_change("projects", path)
            self._rows.append(("project", project_id))
        return project_id

    async def _key(self, project_id: int, path: str, part: KeyPart) -> None:
        if part.models is not None:
            await self._check_models(path, part.models)
        wanted: dict[str, object] = {
            "models": None if part.models is None else json.dumps(part.models),
            "expires_s": None if part.expires is None else int(part.expires.timestamp()),
        }
        known = await accounts.live_id(
            self._connection, keys, project_id=project_id, name=part.name
        )
        key_id = await self._named(
            "keys",
            keys,
            path,
            {**wanted, "created_ms": self._now_ms},
            project_id=project_id,
            name=part.name,
        )
        if known is None:
            minted = self._applier._mint()  # noqa: SLF001
            digest = self._applier._digest(minted.token)  # noqa: SLF001
            await accounts.add_secret(self._connection, key_id, minted, digest, self._now_ms)
            self._applied.keys.append({"path": path, "secret": minted.token})
        elif await self._differs(keys, key_id, wanted):
            await self._set(keys, key_id, **wanted)
            self._note("updated", "keys", path)
            self._rows.append(("key", key_id))
        await self._limits("key", key_id, path, part.limits)

    async def _check_models(self, path: str, names: Sequence[str]) -> None:
        for name in names:
            if await accounts.live_id(self._connection, models, name=name) is None:
                raise DeclaredError(
                    f"{self._file}: key {path}: models: {name!r}: expected the name of a model in "
                    "this file or applied before"
                )

    async def _tenant(self, part: TenantPart) -> int:
        low = None if part.low_balance is None else parse_price(part.low_balance)
        wanted: dict[str, object] = {"time_zone": part.time_zone, "low_balance_nano": low}
        known = await accounts.live_id(self._connection, tenants, name=part.name)
        tenant_id = await self._named("tenants", tenants, part.name, wanted, name=part.name)
        if known is not None and await self._differs(tenants, tenant_id, wanted):
            await self._set(tenants, tenant_id, **wanted)
            self._note_change("tenants", part.name)
            self._rows.append(("tenant", tenant_id))
        return tenant_id

    async def _shared(self, kind: str, row_id: int, path: str, part: SharedLimits) -> None:
        """Limits that all tenants share."""
        if await set_limits(self._connection, kind, row_id, part.rows()):
            self._note_change("platform" if kind == "platform" else kind + "s", path)
            self._rows.append(changed_row(kind, row_id))

    async def _limits(self, kind: str, row_id: int, path: str, part: LimitsPart) -> None:
        ids = {}
        for name in part.models:
            model_id = await accounts.live_id(self._connection, models, name=name)
            if model_id is None:
                raise DeclaredError(
                    f"{self._file}: {kind} {path}: limits.models: {name!r}: expected the name of a "
                    "model in this file or applied before"
                )
            ids[name] = model_id
        if not await set_limits(self._connection, kind, row_id, part.rows(ids)):
            return
        noun = kind + "s"
        self._note_change(noun, path)
        self._rows.append((kind, row_id))

    async def _sink(self, kind: str, name: str, options: receivers.Options, start: str) -> None:
        """A receiver of events; the data processes know nothing of it."""
        try:
            row_id, verb = await receivers.set_sink(
                self._connection, name, kind, options, start, self._now_ms
            )
        except ValueError as wrong:
            raise DeclaredError(f"{self._file}: {kind}s: {wrong}") from None
        self._seen.setdefault("sinks", set()).add(row_id)
        if verb != "same":
            self._note(verb, f"{kind}s", name)

    # -- pruning -----------------------------------------------------------------------------

    async def _prune(self) -> None:
        """End every living row that the file did not name, children first."""
        paths = await self._paths()
        for noun, table, kind in (
            ("keys", keys, "key"),
            ("projects", projects, "project"),
            ("tenants", tenants, "tenant"),
            ("models", models, "model"),
            ("endpoints", endpoints, "pool"),
            ("pools", pools, "pool"),
            ("sinks", sinks, ""),
        ):
            for row_id, (path, parent) in paths[noun].items():
                if row_id in self._seen.get(noun, set()):
                    continue
                await self._set(table, row_id, deleted_at=self._now_ms)
                if noun == "keys":
                    await accounts.revoke(self._connection, row_id, self._now_ms)
                self._note("removed", noun, path)
                if kind:  # one that data processes know
                    self._rows.append((kind, parent if noun == "endpoints" else row_id))

    async def _paths(self) -> dict[str, dict[int, tuple[str, int]]]:
        """Every living row: noun -> id -> (path, parent id)."""
        found: dict[str, dict[int, tuple[str, int]]] = {}

        async def live(noun: str, table: object, name: str, parent: str | None) -> None:
            query = select(table).where(table.c.deleted_at.is_(None))  # type: ignore[attr-defined,call-overload]
            above = found.get({"tenant_id": "tenants", "project_id": "projects",
                               "pool_id": "pools"}.get(parent or "", ""), {})  # fmt: skip
            joint = " " if noun == "endpoints" else "/"
            rows = (await self._connection.execute(query)).mappings()
            found[noun] = {
                row["id"]: (
                    f"{above[row[parent]][0]}{joint}{row[name]}"
                    if parent and row[parent] in above
                    else row[name],
                    row[parent] if parent else 0,
                )
                for row in rows
            }

        await live("pools", pools, "name", None)
        await live("endpoints", endpoints, "url", "pool_id")
        await live("models", models, "name", None)
        await live("tenants", tenants, "name", None)
        await live("projects", projects, "name", "tenant_id")
        await live("keys", keys, "name", "project_id")
        await live("sinks", sinks, "name", None)
        return found

    # -- rows --------------------------------------------------------------------------------

    async def _named(
        self,
        noun: str,
        table: object,
        path: str,
        rest: dict[str, object] | None = None,
        **names: object,
    ) -> int:
        """The living row of these names, made where it is missing."""
        row_id = await accounts.live_id(self._connection, table, **names)
        if row_id is None:
            row_id = await accounts.insert_row(self._connection, table, **names, **(rest or {}))
            self._note("created", noun, path)
            if noun not in ("endpoints", "publishers"):
                self._rows.append((noun.removesuffix("s"), row_id))
        self._seen.setdefault(noun, set()).add(row_id)
        return row_id

    async def _differs(self, table: object, row_id: int, wanted: dict[str, object]) -> bool:
        query = select(table).where(table.c.id == row_id)  # type: ignore[attr-defined,call-overload]
        row = (await self._connection.execute(query)).mappings().one()
        return any(row[column] != value for column, value in wanted.items())

    async def _set(self, table: object, row_id: int, **values: object) -> None:
        await self._connection.execute(
            update(table).where(table.c.id == row_id).values(**values)  # type: ignore[arg-type,attr-defined]
        )

    def _note_change(self, noun: str, path: str) -> None:
        """Once, and not of what is new."""
        for verb in ("created", "updated"):
            if path in getattr(self._applied, verb).get(noun, ()):
                return
        self._note("updated", noun, path)

    def _note(self, verb: str, noun: str, path: str) -> None:
        getattr(self._applied, verb).setdefault(noun, []).append(path)
