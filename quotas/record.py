"""The usage record: one a request that reached an engine, as a value and as bytes.

What is written to the journal and shipped to the ledger. It names its rows by SQL ids (never
reused), so a rename changes no history. Not here: the journal's framing (``gateway.metering``).
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec.structs import fields

from quotas.charges import settled_as, tag_of
from quotas.limits import Charge
from quotas.ports import Settlement

Outcome = Literal[
    "ok",
    "client_abort",
    "engine_error",
    "timeout",
    "shutdown",
    "key_revoked",
    "gateway_crash",
    "refused_by_engine",
]
Source = Literal["engine_final", "engine_partial", "tokenized", "estimated", "none"]
FORMAT_VERSION = 2
#: Fields that version 1 did not have.
_OF_TWO = ("epoch", "charged")
#: And those that its earliest records did not have.
_ABSENT_IN_ONE = {"v": 1, "prompts": 1, "reserved": False, "prompt_estimate": 0, "cap": 0}
_MAPS = frozenset(bytes((each,)) for each in (*range(0x80, 0x90), 0xDE, 0xDF))


class AttemptEntry(msgspec.Struct, frozen=True, array_like=True):
    """One forward to one endpoint: what was seen of it, billed or not.

    Times are Unix ms. ``status`` is the engine's HTTP status, 0 when none came.
    ``prompt_tokens`` and ``completion_tokens`` are the engine's counts as far as seen.
    """

    endpoint_id: int
    endpoint: str
    started_ms: int
    ended_ms: int
    status: int
    prompt_tokens: int
    completion_tokens: int
    choices: int


class UsageRecord(msgspec.Struct, frozen=True, array_like=True):
    """See the module. Its bytes are its fields in this order, so a new one comes last, with a default.

    ``usage`` maps meter to integer: prompt_tokens, cached_tokens,
    completion_tokens, reasoning_tokens; ``billed`` maps the price book's meters (input,
    cached_input, output) to units. ``choices`` is per prompt (max of n and best_of): an engine counts
    a prompt once a choice. ``ttft_ms`` is -1 when no event came. ``v`` is ``FORMAT_VERSION``.
    """

    v: int
    request_id: str
    tenant_id: int
    project_id: int
    key_id: int
    model_id: int
    price_id: int  # the price-book version's row, frozen at admission; 0 = none
    operation: str  # "chat", "completions", "embeddings"
    choices: int
    prompts: int
    reserved: bool  # admitted on reserved throughput, which covers all of it
    prompt_estimate: int  # of all prompts, as reserved
    cap: int  # completion tokens that a choice may have; 0 = not known
    attempts: tuple[AttemptEntry, ...]
    usage: dict[str, int]
    billed: dict[str, int]
    source: Source
    outcome: Outcome
    status: int  # the HTTP status the client got, 0 when none went out
    started_ms: int
    ttft_ms: int
    total_ms: int
    epoch: str | None = None  # of the reservation; None = there was none to settle
    charged: tuple[Charge, ...] = ()  # true amounts of its limits

    @property
    def settlement(self) -> Settlement | None:
        """What the store is told of it: what else that has is in the record already."""
        if self.epoch is None:
            return None
        name = settled_as(self.request_id, self.epoch)
        return Settlement(tag_of(self.tenant_id), name, self.epoch, self.charged, self.billed)


class _Beginning(msgspec.Struct, array_like=True):
    v: int
    request_id: str


class _BeginningOfFirst(msgspec.Struct):
    request_id: str


#: Version 1, of the first release: a map, with the settlement whole. Kept records have it for ever.
_First = msgspec.defstruct(
    "_First",
    [
        *(
            (f.name, f.type, _ABSENT_IN_ONE.get(f.name, f.default))
            for f in fields(UsageRecord)
            if f.name not in _OF_TWO
        ),
        ("settlement", Settlement | None, None),
    ],
    kw_only=True,
)
_decoder = msgspec.msgpack.Decoder(UsageRecord)
_first = msgspec.msgpack.Decoder(_First)
_beginning = msgspec.msgpack.Decoder(_Beginning)
_beginning_of_first = msgspec.msgpack.Decoder(_BeginningOfFirst)
#: The record as MessagePack: an array of its fields, tolerant of those added at its end.
encode: Callable[[UsageRecord], bytes] = msgspec.msgpack.Encoder().encode


def decode(payload: bytes) -> UsageRecord:
    """The inverse; raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    if not _is_map(payload):
        return _decoder.decode(payload)
    first: Any = _first.decode(payload)
    known = {name: getattr(first, name) for name in _First.__struct_fields__}
    settlement: Settlement | None = known.pop("settlement")
    if settlement is None:
        return UsageRecord(**known)
    return UsageRecord(**known, epoch=settlement.epoch, charged=settlement.charged)


def request_id_of(payload: bytes) -> str:
    """Of an encoded record, without the rest of it. Raises as ``decode`` does."""
    if _is_map(payload):
        return _beginning_of_first.decode(payload).request_id
    return _beginning.decode(payload).request_id


def _is_map(payload: bytes) -> bool:
    """MessagePack's three kinds of map."""
    return payload[:1] in _MAPS
