"""Streams of a key that is no more end with it, within a second of its revocation."""

from collections.abc import Iterable

from gateway.call import Call
from gateway.contract.errors import KeyRevoked
from gateway.snapshot import Snapshot


def cut_revoked(calls: Iterable[Call], snapshot: Snapshot, now_s: float) -> None:
    """Stop the calls whose key has no secret left at ``now_s`` (Unix)."""
    for call in list(calls):
        if not still_valid(call, snapshot, now_s):
            call.stop("key_revoked", KeyRevoked())


def still_valid(call: Call, snapshot: Snapshot, now_s: float) -> bool:
    """Whether a request that began now would still find its key; true before it has one."""
    if call.exchange is None:
        return True
    principal = snapshot.principal(call.exchange.principal.key.id)
    if principal is None:
        return False
    secrets = principal.key.secrets
    return any(each.expires_s is None or each.expires_s > now_s for each in secrets)
