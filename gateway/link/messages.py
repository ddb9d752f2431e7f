"""What the link carries: kinds and their bodies, as MessagePack.

Data to control: ``hello`` (first), ``version`` (every 500 ms: what I hold), ``counters``.
Control to data: ``moves`` (snapshot changes, or a full load), ``signals``, ``explain`` (answered by
``explained``).
Control to data: ``rehold`` (answered by ``reheld``), before balances are counted anew.
Questions with an answer: ``balances`` (``BalancesAsked``, ``BalancesAnswer``); ``read``, a ``/v1`` path that needs SQL (``Read``, ``ReadAnswer``).
"""

import msgspec

from gateway.snapshot import Move
from quotas.limits import Limit
from quotas.ports import Seed
from routing.signals import EndpointSignals


class Hello(msgspec.Struct, frozen=True):
    slot: int
    pid: int
    version: int  # of the snapshot held; 0 = nothing


class Version(msgspec.Struct, frozen=True):
    version: int


class Moves(msgspec.Struct, frozen=True):
    """Bring the snapshot to ``version``; ``full``: forget what was known first.

    A large load comes as several bodies of <= 500 moves; only the last has ``last``.
    """

    version: int
    full: bool
    last: bool
    moves: tuple[Move, ...]


class Signals(msgspec.Struct, frozen=True):
    endpoints: tuple[EndpointSignals, ...]


class Counters(msgspec.Struct, frozen=True):
    """Absolute values since the process began: (metric, label values) -> number.

    ``histograms``: counts per bucket of ``gateway.telemetry.BUCKETS_S`` (one more than bounds),
    then the sum in seconds.
    """

    slot: int
    pid: int
    counters: dict[str, dict[str, float]]
    gauges: dict[str, dict[str, float]]
    histograms: dict[str, dict[str, list[float]]]


class Read(msgspec.Struct, frozen=True):
    """Asked by an authenticated key, and answered from what is its own. ``query``: first values."""

    path: str
    query: dict[str, str]
    tenant_id: int
    project_id: int
    key_id: int


class ReadAnswer(msgspec.Struct, frozen=True):
    """``body`` is JSON: what was asked for, or an error in the contract's shape.

    ``retry_after_ms``: said with a refusal that may be asked again; None = not said.
    """

    status: int
    body: bytes
    retry_after_ms: int | None = None


class Explain(msgspec.Struct, frozen=True):
    """What would a request of these tokens get? ``number`` comes back with the answer."""

    number: int
    key_id: int
    model_id: int
    input_tokens: int
    output_tokens: int


class Explained(msgspec.Struct, frozen=True):
    """``body``: JSON of ``gateway.explain``; empty where it could not be found out."""

    number: int
    body: bytes


class BalancesAsked(msgspec.Struct, frozen=True):
    """The store does not know these levels of money in this epoch: what does SQL say?"""

    tenant_id: int
    tag: str
    epoch: str
    limits: tuple[Limit, ...]


class BalancesAnswer(msgspec.Struct, frozen=True):
    """``seeds`` for the store, with the ids that they include and whose settle may still arrive.

    ``counted_before``: another process was just told, and hands them over.
    """

    seeds: tuple[Seed, ...] = ()
    counted: tuple[str, ...] = ()
    counted_before: bool = False


class Rehold(msgspec.Struct, frozen=True):
    """Hold open requests of these tags again, each under the store's new epoch."""

    number: int
    epochs: dict[str, str]


class Reheld(msgspec.Struct, frozen=True):
    number: int


class Credited(msgspec.Struct, frozen=True):
    """A balance moved in SQL by ``delta_micro``: to be moved in this process's store, once an id."""

    tag: str
    adjustment_id: str
    limit: Limit
    delta_micro: int
