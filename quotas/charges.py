"""What each limit is truly charged when a request has ended: the amounts of its settle.

Nothing is given back that was not proven unused. Not here: what the request bills
(``quotas.settlement``), how levels move (the stores).
"""

from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter

from quotas.limits import Charge, Dimension, Limit, counted
from quotas.usage import TokenUsage

#: The order of a request's amounts.
DIMENSIONS: tuple[Dimension, ...] = (
    "requests",
    "input_tokens",
    "output_tokens",
    "tokens",
    "concurrency",
    "money",
)
Amounts = tuple[int, int, int, int, int, int]

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


class Layout:
    """Where each of a list of limits finds its amount, worked out once for every request that is charged
    to them. ``amounts``: what stands for each limit, of a request's amounts.
    """

    __slots__ = ("amounts", "first_request", "has_quotas", "limits", "spends")

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        dimensions = [limit.dimension for limit in limits]
        self.amounts = _picker([DIMENSIONS.index(dimension) for dimension in dimensions])
        self.first_request = dimensions.index("requests") if "requests" in dimensions else -1
        self.has_quotas = any(limit.algorithm == "quota" for limit in limits)
        self.spends = "money" in dimensions


def _picker(places: Sequence[int]) -> Callable[[Amounts], tuple[int, ...]]:
    """Takes what stands at these places out of a tuple, in one step of C."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda amounts: tuple([amounts[place] for place in places])


def true_charges(
    reserved: tuple[Charge, ...],
    usage: TokenUsage | None,
    cost_micro: Callable[[], int],
    layout: Layout | None = None,
) -> tuple[Charge, ...]:
    """``usage``: the counts that stand for the request, None where they prove nothing and what was
    reserved stays. ``cost_micro``: what it bills, in micro-units; asked only where money is limited.
    Requests stay counted, holds go free. ``layout``: the one that ``reserved`` was made by, where it is
    known: the same in fewer steps.
    """
    if layout is not None and usage is not None and not usage.cached:
        prompt, completion = usage.prompt, usage.completion
        requests = reserved[layout.first_request].amount if layout.first_request >= 0 else 0
        money = cost_micro() if layout.spends else 0
        own = layout.amounts((requests, prompt, completion, prompt + completion, 0, money))
        if layout.has_quotas:
            periods = [charge.periods for charge in reserved]
            return tuple(map(Charge, layout.limits, own, periods))
        return tuple(map(Charge, layout.limits, own))
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
