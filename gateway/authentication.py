"""Who calls: the key in a request's head, and the models it may name.

The same error and the same work for unknown, wrong, revoked and expired keys; a model that the key may
not use answers as one that does not exist. Not here: what a key looks like (``gateway.identity``).
"""

from collections.abc import Callable

import msgspec

from gateway import identity
from gateway.contract.errors import InvalidKey, ModelNotFound, ModelNotPriced
from gateway.snapshot import ModelDoc, Principal, Snapshot
from gateway.wire.server import Request


class Seen(msgspec.Struct, frozen=True):
    """What a head's credential says, and whose it is in one generation of the snapshot."""

    kid: str | None
    digest: bytes
    generation: object
    principal: Principal | None
    expires_ms: int | None


class Authentication:
    """One per data process."""

    def __init__(self, snapshot: Snapshot, pepper: bytes, unix_ms: Callable[[], int]) -> None:
        self._snapshot = snapshot
        self._pepper = pepper
        self._unix_ms = unix_ms

    def principal_of(self, request: Request) -> Principal:
        """The caller. Raises ``InvalidKey``."""
        head = request.head
        seen: Seen | None = head.memo  # type: ignore[assignment]  # as set here
        if seen is None or seen.generation is not self._snapshot.generation:
            seen = head.memo = self._look_up(request, seen)
        if seen.principal is None:
            raise InvalidKey
        if seen.expires_ms is not None and seen.expires_ms <= self._unix_ms():
            raise InvalidKey
        return seen.principal

    def _look_up(self, request: Request, seen: Seen | None) -> Seen:
        """Whose key a head carries. What its bytes say is found once; whose that is, whenever anything
        has changed.
        """
        if seen is None:
            token = _token(request)
            kid, digest = identity.parse(token), identity.digest(self._pepper, token)
        else:
            kid, digest = seen.kid, seen.digest
        snapshot = self._snapshot
        found = snapshot.find_secret(kid) if kid is not None else None
        right = identity.matches(digest, found[1].digest if found else bytes(len(digest)))
        principal = snapshot.principal(found[0].id) if right and found is not None else None
        expires_s = found[1].expires_s if found is not None else None
        expires_ms = None if expires_s is None else expires_s * 1000
        return Seen(kid, digest, snapshot.generation, principal, expires_ms)

    def model_for(self, principal: Principal, name: str) -> ModelDoc:
        """The model of that name. One without a price is free, but not to who pays. Raises
        ``ModelNotFound`` and ``ModelNotPriced``.
        """
        model = self._snapshot.model_by_name.get(name)
        if model is None or not may_use(principal, model):
            raise ModelNotFound(name)
        if principal.tenant.pays and principal.price_of(model) is None:
            raise ModelNotPriced(name)  # free work for who pays would be nobody's
        return model


def may_use(principal: Principal, model: ModelDoc) -> bool:
    return principal.key.models is None or model.name in principal.key.models


def _token(request: Request) -> str:
    """The credential as sent: ``Authorization: Bearer`` or ``x-api-key``; "" when there is none."""
    bearer = request.header(b"authorization")
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip().decode("latin-1")
    return (request.header(b"x-api-key") or b"").strip().decode("latin-1")
