"""What a decision may know of a request: numbers and names, never its text."""

import msgspec

from routing.topology import Pool


class RoutingRequest(msgspec.Struct, frozen=True):
    """One request in want of an endpoint.

    ``model_upstream``: the model's name at the engine. ``tokens_estimate``: prompt tokens plus
    reserved completion, over all its sequences. ``needs_context``: tokens of its longest sequence,
    0 = unknown. ``tried``: ids of the endpoints that failed this request already. ``guaranteed``: its
    capacity was sold, so others' load does not keep it out.
    """

    model_upstream: str
    pool: Pool
    tokens_estimate: int = 0
    tried: frozenset[int] | tuple[int, ...] = ()
    needs_context: int = 0
    guaranteed: bool = False
