"""Credit grants and the order in which they are used up.

Promotional before paid, then by priority, then what expires first, then the older. Not here: rows
(``gateway.store.books``), the balance that a request is held against (``quotas.store``).
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

GrantKind = Literal["promotional", "paid"]
NEVER_MS = 2**62


class Grant(msgspec.Struct, kw_only=True):
    """Mutable: drawing takes from ``left_nano``. Times are Unix ms, ``expires_ms`` 0 = never.

    A lower ``priority`` is used earlier.
    """

    id: int
    kind: GrantKind
    left_nano: int
    priority: int = 100
    expires_ms: int = 0


class Draw(msgspec.Struct, frozen=True, array_like=True):
    grant_id: int
    kind: GrantKind
    nano: int


def in_order(grants: Iterable[Grant]) -> list[Grant]:
    return sorted(
        grants,
        key=lambda grant: (
            grant.kind != "promotional",
            grant.priority,
            grant.expires_ms or NEVER_MS,
            grant.id,
        ),
    )


def draw(ordered: Iterable[Grant], nano: int, at_ms: int) -> tuple[tuple[Draw, ...], int]:
    """Take ``nano`` from grants already ``in_order``; (draws, what no grant covers).

    A grant pays for what was asked before it expired, however late the record comes.
    """
    draws = []
    for grant in ordered:
        if nano <= 0:
            break
        if grant.left_nano <= 0 or (grant.expires_ms and at_ms >= grant.expires_ms):
            continue
        taken = min(grant.left_nano, nano)
        grant.left_nano -= taken
        nano -= taken
        draws.append(Draw(grant.id, grant.kind, taken))
    return tuple(draws), max(nano, 0)
