"""What each limit is truly charged when a request has ended: the amounts of its settle.

Nothing is given back that was not proven unused. Not here: what the request bills
(``quotas.settlement``), how levels move (the stores).
"""

from collections.abc import Callable

from quotas.limits import Charge, counted
from quotas.usage import TokenUsage


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
    made = list(reserved)
    for index, charge in enumerate(reserved):
        limit = charge.limit
        dimension = limit.dimension
        amount: int | None
        if dimension == "requests":
            amount = charge.amount
        elif dimension == "concurrency":
            amount = 0
        elif dimension == "money":
            amount = cost_micro()
        else:
            amount = None if usage is None else counted(limit, usage)
        if amount is not None and amount != charge.amount:
            made[index] = Charge(limit, amount, charge.periods)
    return tuple(made)
