"""Money that may be spent while the store is away: a configured credit, and this process's part of it.

Without one, money is never spent on a guess. With one, a process admits what fits in the credit
divided by the number of processes, so that all of them together stay within it. It counts what was
spent since the store last admitted the scope's money, not since an outage began: a store that comes
and goes gives no credit twice. Pure. Not here: when the store is away (``gateway.admission``), what
the credit is (the limits of a tenant or project).
"""

from collections.abc import Iterable

from quotas.limits import Charge

#: (scope, micro-units): the tenant's credit, its project's, or both. Each bounds what is spent.
Credits = tuple[tuple[str, int], ...]


class OfflineCredit:
    """Mutable. ``spent``: micro-units by scope, open requests at the dearest they could be."""

    __slots__ = ("spent",)

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}

    def fits(self, of: Credits, amount: int, processes: int) -> bool:
        """Whether every credit has room for it; no credit has none."""
        spent = self.spent
        return bool(of) and all(
            (spent.get(scope, 0) + amount) * processes <= micro for scope, micro in of
        )

    def move(self, of: Credits, amount: int) -> None:
        """Spend so much, or less of it than was thought (negative)."""
        for scope, _ in of:
            self.spent[scope] = max(0, self.spent.get(scope, 0) + amount)

    def renew(self, of: Credits) -> None:
        """The store has admitted money of these again: what was spent without it is in its level."""
        for scope, _ in of:
            self.spent.pop(scope, None)


def money_of(charges: Iterable[Charge]) -> int:
    """Micro-units that a request holds, or came to: each limit of money is charged the same."""
    return max(
        (
            each.amount
            for each in charges
            if each.limit.dimension == "money" and not each.limit.shadow
        ),
        default=0,
    )
