"""What each limit is truly charged when a request has ended: the amounts of its settle.

Nothing is given back that was not proven unused. Not here: what the request bills
(``quotas.settlement``), how levels move (the stores).
"""

from collections.abc import Callable
from operator import attrgetter

from quotas.limits import Charge, counted
from quotas.usage import TokenUsage

_dimension_of = attrgetter("limit.dimension")
_TOKENS = frozenset(("tokens", "input_tokens", "output_tokens"))


def tag_of(tenant_id: int) -> str:
    """The store's tag of a tenant."""
    return f"t{tenant_id}"


def settled_as(request_id: str, epoch: str) -> str:
    """The reservation id of a request's settle. One that was admitted without the store (epoch "")
    has an id of its own: the store may have been asked in vain under the request's, and told to
    forget that.
    """
    return request_id if epoch else request_id + "+"


def true_charges(
    reserved: tuple[Charge, ...], usage: TokenUsage | None, cost_micro: Callable[[], int]
) -> tuple[Charge, ...]:
    """``usage``: the counts that stand for the request, None where they prove nothing and what was
    reserved stays. ``cost_micro``: what it bills, in micro-units; asked only where money is limited.
    Requests stay counted, holds go free.
    """
    amounts = _Amounts(cost_micro)
    if usage is not None:
        if usage.cached:
            return tuple([_weighted(each, usage, amounts) for each in reserved])
        prompt, completion = usage.prompt, usage.completion
        amounts["tokens"] = prompt + completion
        amounts["input_tokens"], amounts["output_tokens"] = prompt, completion
    true = map(amounts.__getitem__, map(_dimension_of, reserved))
    return tuple(
        [
            charge
            if amount is None or amount == charge.amount
            else Charge(charge.limit, amount, charge.periods)
            for charge, amount in zip(reserved, true, strict=True)
        ]
    )


class _Amounts(dict[str, int | None]):
    """Units by dimension; None for as many as were reserved. Money is counted when first asked for."""

    __slots__ = ("_cost_micro",)

    def __init__(self, cost_micro: Callable[[], int]) -> None:
        self._cost_micro = cost_micro
        self["concurrency"] = 0

    def __missing__(self, dimension: str) -> int | None:
        found = self[dimension] = self._cost_micro() if dimension == "money" else None
        return found


def _weighted(charge: Charge, usage: TokenUsage, amounts: _Amounts) -> Charge:
    """The same where a limit may count cached input by its weight."""
    limit = charge.limit
    amount = counted(limit, usage) if limit.dimension in _TOKENS else amounts[limit.dimension]
    if amount is None or amount == charge.amount:
        return charge
    return Charge(limit, amount, charge.periods)
