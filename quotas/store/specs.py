"""Limits as the scripts read them: a table in columns, packed once for each list of limits.

The layout is described in ``lua/levels.lua``. Requests of a key bring the same limits (and, for a
day, the same periods) again and again, so the packed table is kept; only amounts are packed anew.
Rows are ordered by scope, so that a script reads and writes each scope's hash once; ``order`` leads
back to the charges. Not here: keys and calls (``quotas.store.redis``).
"""

from collections.abc import Sequence
from struct import Struct
from typing import TypeVar

import msgspec

from quotas.limits import Charge, Level, Limit
from quotas.reservation import by_scope, check_amounts, check_limits, check_periods

#: Lists of limits remembered; some 300 bytes each.
SPECS_KEPT = 16_384

T = TypeVar("T")

_pack = msgspec.msgpack.Encoder().encode


class Spec:
    """``order[i]`` is the row of charge ``i``, None where rows are in the charges' own order."""

    __slots__ = ("_amounts", "_kept", "_levels", "_slots", "order", "packed", "rows", "scopes")

    def __init__(self, charges: Sequence[Charge]) -> None:
        limits = [charge.limit for charge in charges]
        self._kept = (limits, [charge.periods for charge in charges])  # so that ids stay theirs
        self.scopes = tuple(dict.fromkeys(limit.scope for limit in limits))
        rows = by_scope(limits)
        self.rows = rows
        self.order = None if rows == list(range(len(rows))) else _inverse(rows)
        ordered = [charges[i] for i in rows]
        self._slots = [i for i, limit in enumerate(limits) if limit.algorithm == "concurrency"]
        self.packed = _columns(self.scopes, ordered)
        self._amounts = Struct(f"<{len(limits)}q").pack
        self._levels = Struct(f"<{2 * len(limits)}q").unpack

    def amounts(self, charges: Sequence[Charge]) -> bytes:
        """The charges' amounts, row by row. Raises ``ReservationRefused`` for what is not exact."""
        amounts = [charge.amount for charge in charges]
        check_amounts(amounts)
        if self.order is not None:
            amounts = [amounts[i] for i in self.rows]
        return self._amounts(*amounts)

    def levels(self, packed: bytes) -> tuple[Level, ...]:
        """What a step shows of its rows, as the charges stand."""
        numbers = iter(self._levels(packed))
        return tuple(self.in_order(list(map(Level, numbers, numbers))))

    def in_order(self, rows: list[T]) -> list[T]:
        """What stands row by row, as the charges stand."""
        return rows if self.order is None else [rows[row] for row in self.order]

    def holds(self, charges: Sequence[Charge]) -> bool:
        """Whether the charges take concurrency, which needs a lease."""
        for i in self._slots:  # noqa: SIM110 -- a generator costs several times as much
            if charges[i].amount:
                return True
        return False


class Specs:
    """The specs of this process."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Spec] = {}

    def of(self, charges: Sequence[Charge]) -> Spec:
        """Raises ``ReservationRefused`` for a level named twice or a quota without periods."""
        key = (
            *[id(charge.limit) for charge in charges],
            *[id(charge.periods) for charge in charges],
        )
        return self._kept.get(key) or self._make(key, charges)

    def _make(self, key: tuple[int, ...], charges: Sequence[Charge]) -> Spec:
        check_limits([charge.limit for charge in charges])
        check_periods(charges)
        if len(self._kept) >= SPECS_KEPT:
            self._kept.clear()
        spec = self._kept[key] = Spec(charges)
        return spec


def field(limit: Limit) -> str:
    """A level's field in its scope's hash."""
    return f"{limit.window}:{limit.dimension}"


def _columns(scopes: tuple[str, ...], charges: list[Charge]) -> bytes:
    limits = [charge.limit for charge in charges]
    ends: list[int] = []
    for row, limit in enumerate(limits, 1):
        if row == len(limits) or limits[row].scope != limit.scope:
            ends.append(row)
    periods = [
        value
        for charge in charges
        if charge.limit.algorithm == "quota" and charge.periods is not None
        for value in (
            charge.periods.this_id,
            charge.periods.begins_ms,
            charge.periods.ends_ms,
            charge.periods.next_id,
            charge.periods.next_ends_ms,
        )
    ]
    columns: tuple[Sequence[str | int], ...] = (
        scopes,
        ends,
        [field(limit) for limit in limits],
        [limit.algorithm for limit in limits],
        [limit.capacity for limit in limits],
        [limit.per_minute for limit in limits],
        [limit.dimension for limit in limits],
        [int(limit.shadow) for limit in limits],
        periods,
    )
    return b"".join([_pack(column) for column in columns])


def _inverse(rows: list[int]) -> list[int]:
    order = [0] * len(rows)
    for row, index in enumerate(rows):
        order[index] = row
    return order
