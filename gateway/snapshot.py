"""What a data process knows: tenants, keys, models, pools, prices; changed by moves.

Documents are what the loader writes and the link carries: ``Move(kind, id, doc)``. The snapshot
holds them by id and keeps the few indexes a request needs. It is never asked of SQL while a
request waits. Not here: levels, reservations, signals.
"""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from quotas.limits import Limit
from quotas.offline import Credits
from quotas.pricing import DEFAULT_TIER, Price
from routing.topology import Pool

Kind = Literal["tenant", "project", "key", "model", "pool", "platform"]
#: There is one platform.
PLATFORM_ID = 1


class _Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What limits a tenant, a project or a key: all it does, what it does with one model (by the
    model's id), and what each of its end users does (their scope is completed at the request).
    """

    limits: tuple[Limit, ...] = ()
    model_limits: dict[int, tuple[Limit, ...]] = {}
    user_limits: tuple[Limit, ...] = ()


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Reserved throughput of one model, sold: a bucket of its own. Unix ms; ``spills``: above it, a
    request is admitted as everybody's is; else it is refused.
    """

    limit: Limit
    spills: bool
    from_ms: int
    until_ms: int

    def holds(self, at_ms: int) -> bool:
        return self.from_ms <= at_ms < self.until_ms


class TenantDoc(_Scope, frozen=True, kw_only=True):
    """``time_zone``: in which its days, weeks and months begin; ``currency``: of its contract and
    budgets. ``pays``: it has a contract under which something is owed. ``prices``: what it pays for a
    model, by the model's id, in place of everybody's price; ``tiers``: the same by tier, of the others
    than the default. ``throughput``: what it has reserved, by the model's id.
    ``offline_credit_micro``: money that may be spent while the store is away.
    """

    id: int
    name: str
    offline_credit_micro: int | None = None
    time_zone: str = "UTC"
    currency: str = "USD"
    pays: bool = False
    prices: dict[int, Price] = {}
    tiers: dict[int, dict[str, Price]] = {}
    throughput: dict[int, Throughput] = {}


class ProjectDoc(_Scope, frozen=True, kw_only=True):
    """``usage_cost``: answers say in ``usage`` what they cost, whether that was asked for or not."""

    id: int
    tenant_id: int
    name: str
    usage_cost: bool = False
    offline_credit_micro: int | None = None


class SecretDoc(msgspec.Struct, frozen=True, kw_only=True):
    """One live secret of a key: during a rotation there are two. Times are Unix seconds."""

    kid: str
    digest: bytes  # HMAC-SHA-256 with the pepper over the whole key
    expires_s: int | None = None


class KeyDoc(_Scope, frozen=True, kw_only=True):
    """A key without live secrets (revoked, expired) stays known by no kid at all."""

    id: int
    project_id: int
    name: str
    path: str  # "acme/chatbot/ci"
    secrets: tuple[SecretDoc, ...]
    models: tuple[str, ...] | None = None  # None = every model


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    connect_s: float = 5.0
    first_event_s: float = 300.0
    gap_s: float = 120.0
    unary_s: float = 600.0
    stream_s: float = 3600.0


class ModelDoc(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    upstream: str
    pool_id: int
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    timeouts: Timeouts = Timeouts()
    price: Price | None = None
    tiers: dict[str, Price] = {}  # what it costs in tiers other than the default
    created_s: int = 0


class PlatformDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What limits everybody: all requests, those to one pool, those for one model (by their ids)."""

    id: int = PLATFORM_ID
    limits: tuple[Limit, ...] = ()
    pool_limits: dict[int, tuple[Limit, ...]] = {}
    model_limits: dict[int, tuple[Limit, ...]] = {}

    def limits_for(self, model: ModelDoc) -> tuple[Limit, ...]:
        """Every limit that a request for the model shares with all tenants."""
        of_pool = self.pool_limits.get(model.pool_id, ())
        return self.limits + of_pool + self.model_limits.get(model.id, ())


Doc = TenantDoc | ProjectDoc | KeyDoc | ModelDoc | Pool | PlatformDoc
DOC_TYPES: dict[str, type[Doc]] = {
    "tenant": TenantDoc,
    "project": ProjectDoc,
    "key": KeyDoc,
    "model": ModelDoc,
    "pool": Pool,
    "platform": PlatformDoc,
}


class Move(msgspec.Struct, frozen=True, array_like=True):
    """One change: the new document, or None when it is gone. ``doc`` is MessagePack."""

    kind: Kind
    id: int
    doc: bytes | None


class Principal:
    """Who calls: a key with its project and tenant, and every limit that applies, tenant first.
    ``credits``: what of their money may be spent while the store is away.

    ``limits``: whatever the model. ``terms`` is ``gateway.terms``' memory, by model id.
    """

    __slots__ = ("credits", "key", "limits", "project", "tag", "tenant", "terms")

    def __init__(self, key: KeyDoc, project: ProjectDoc, tenant: TenantDoc) -> None:
        self.key = key
        self.project = project
        self.tenant = tenant
        self.limits = tenant.limits + project.limits + key.limits
        self.tag = f"t{tenant.id}"
        self.terms: dict[object, Any] = {}  # by model id, or model id and tier
        self.credits: Credits = tuple(
            [
                (scope, micro)
                for scope, micro in (
                    (self.tag, tenant.offline_credit_micro),
                    (f"p{project.id}", project.offline_credit_micro),
                )
                if micro is not None
            ]
        )

    def price_of(self, model: ModelDoc, tier: str = DEFAULT_TIER) -> Price | None:
        """What the tenant pays for a model in a tier: its own price, else everybody's."""
        if tier == DEFAULT_TIER:
            return self.tenant.prices.get(model.id, model.price)
        own = self.tenant.tiers.get(model.id, {}) if model.id in self.tenant.prices else model.tiers
        return own.get(tier)

    def limits_for(self, model_id: int) -> tuple[Limit, ...]:
        """Every limit of a request for one model, but those of an end user."""
        made = self.limits
        for scope in (self.tenant, self.project, self.key):
            if model_id in scope.model_limits:
                made += scope.model_limits[model_id]
        return made

    def user_limits(self) -> tuple[Limit, ...]:
        return self.tenant.user_limits + self.project.user_limits + self.key.user_limits


class Snapshot:
    """Mutable by ``apply`` alone; every document inside is frozen. ``generation`` is another object
    after every change: what was looked up under the same one is still so.
    """

    def __init__(self) -> None:
        self.version = 0
        self.generation = object()
        self.tenants: dict[int, TenantDoc] = {}
        self.projects: dict[int, ProjectDoc] = {}
        self.keys: dict[int, KeyDoc] = {}
        self.models: dict[int, ModelDoc] = {}
        self.pools: dict[int, Pool] = {}
        self.platforms: dict[int, PlatformDoc] = {}
        self.platform = _NO_PLATFORM  # the one of them
        self.model_by_name: dict[str, ModelDoc] = {}
        self._key_by_kid: dict[str, tuple[KeyDoc, SecretDoc]] = {}
        self._principals: dict[int, Principal] = {}

    def apply(self, version: int, moves: Iterable[Move]) -> None:
        """Bring the snapshot to ``version``. Unknown kinds are skipped: a newer control wrote them."""
        for move in moves:
            kind = DOC_TYPES.get(move.kind)
            if kind is None:
                continue
            doc = None if move.doc is None else msgspec.msgpack.decode(move.doc, type=kind)
            self._put(move.kind, move.id, doc)
        self.version = version

    def adopt(self, other: "Snapshot") -> None:
        """Become ``other`` in one step: a full load that was built beside this one."""
        self.__dict__.update(other.__dict__)
        self.generation = object()

    def find_secret(self, kid: str) -> tuple[KeyDoc, SecretDoc] | None:
        return self._key_by_kid.get(kid)

    def principal(self, key_id: int) -> Principal | None:
        """The key with its project and tenant; None when any of them is gone."""
        known = self._principals.get(key_id)
        if known is not None:
            return known
        key = self.keys.get(key_id)
        project = self.projects.get(key.project_id) if key else None
        tenant = self.tenants.get(project.tenant_id) if project else None
        if key is None or project is None or tenant is None:
            return None
        made = self._principals[key_id] = Principal(key, project, tenant)
        return made

    def _put(self, kind: str, row_id: int, doc: Doc | None) -> None:
        self.generation = object()
        table: dict[int, Doc] = getattr(self, kind + "s")
        old = table.pop(row_id, None)
        if isinstance(old, KeyDoc):
            for secret in old.secrets:
                self._key_by_kid.pop(secret.kid, None)
        if isinstance(old, ModelDoc) and self.model_by_name.get(old.name) is old:
            del self.model_by_name[old.name]
        if doc is not None:
            table[row_id] = doc
        if isinstance(doc, KeyDoc):
            self._key_by_kid.update((secret.kid, (doc, secret)) for secret in doc.secrets)
        if isinstance(doc, ModelDoc):
            self.model_by_name[doc.name] = doc
        self.platform = self.platforms.get(PLATFORM_ID, _NO_PLATFORM)
        if kind in ("tenant", "project", "platform"):
            self._principals.clear()
        elif kind == "key":
            self._principals.pop(row_id, None)


_NO_PLATFORM = PlatformDoc()


def encode_doc(doc: Doc) -> bytes:
    """A document as the link and the snapshot file carry it."""
    return msgspec.msgpack.encode(doc)
