"""A slot of the board as bytes: its layout, and what a reader makes of any 256 of them.

Pure. What may be half written carries a checksum that begins with the slot's generation, so a
block left over from an earlier request is no block at all. Not here: the pen (``board``).

Layout of a slot, little-endian, offsets in bytes (docs/metering.md has the same table):

      0 state          1 operation     2 choices       4 generation    8 request id (16)
                       (and 128 where it was admitted on reserved throughput)
     24 tenant, project, key, model, price (u32 each)  44 prompts, estimate, cap (u32 each)
     56 started_ms    64 crc of 1..64
     68 epoch (24)    92 crc of it
     96 4 attempts x 24: endpoint, started, ended, prompt, completion, status, number, state
    192 2 halves x 16: prompt, completion, tag, crc
    224 ended: prompt, cached, completion, reasoning, total_ms, ttft_ms, status, outcome, source, crc
"""

from enum import IntEnum
from struct import Struct
from zlib import crc32

import msgspec

from quotas.record import Outcome, Source

SLOT_BYTES = 256
ATTEMPTS_MAX = 4
EPOCH_BYTES = 24
OPERATIONS = ("chat", "completions", "embeddings")
#: Beside the operation: admitted on reserved throughput.
RESERVED_BIT = 0x80
OUTCOMES: tuple[Outcome, ...] = (
    "ok",
    "client_abort",
    "engine_error",
    "timeout",
    "shutdown",
    "key_revoked",
    "gateway_crash",
    "refused_by_engine",
)
SOURCES: tuple[Source, ...] = (
    "engine_final",
    "engine_partial",
    "tokenized",
    "estimated",
    "none",
)
U32 = 0xFFFFFFFF
_SEQUENCE_BITS = 24

IDENTITY = Struct("<BHI16s20s3IQ")
IDS = Struct("<5I")
EPOCH = Struct("<24sI")
ATTEMPT = Struct("<5IHBB")
#: The epoch and the first attempt beside it, as they are stored at once: zeros but for its endpoint, its
#: start and its state.
FIRST = Struct("<24sIII15xB")
COUNTS = Struct("<III")
HALF = Struct("<IIII")
ENDED = Struct("<5IiHBB")
CRC = Struct("<I")
IDENTITY_AT, IDENTITY_CRC_AT, EPOCH_AT, ATTEMPTS_AT, HALVES_AT, ENDED_AT = (
    1,
    64,
    68,
    96,
    192,
    224,
)


class SlotState(IntEnum):
    """What the state byte says. Codes are part of the file format."""

    FREE = 0
    RESERVING = 1
    RESERVED = 2
    DISPATCHED = 3
    ENDED = 4


class AttemptState(IntEnum):
    UNUSED = 0
    DISPATCHED = 1
    FAILED = 2


class AttemptImage(msgspec.Struct, frozen=True):
    """An attempt as found. Times are ms since the slot's ``started_ms``; ``ended_ms`` 0: unknown."""

    number: int
    endpoint_id: int
    started_ms: int
    ended_ms: int
    status: int
    prompt: int
    completion: int
    failed: bool


class Progress(msgspec.Struct, frozen=True):
    """The newest whole half: the engine's counts, and whether a token went to the client."""

    attempt: int
    prompt: int
    completion: int
    delivered: bool


class EndedImage(msgspec.Struct, frozen=True):
    outcome: Outcome
    source: Source
    prompt: int
    cached: int
    completion: int
    reasoning: int
    status: int
    ttft_ms: int
    total_ms: int


class SlotImage(msgspec.Struct, frozen=True, kw_only=True):
    """A slot as found. ``progress`` is of the last attempt dispatched, None when none was whole.

    ``ended`` None with state ENDED: the ending was torn, only counts in ``progress`` are left.
    """

    index: int
    state: SlotState
    generation: int
    request_id: str  # 32 hexadecimal digits
    tenant_id: int
    project_id: int
    key_id: int
    model_id: int
    price_id: int
    operation: str
    reserved: bool = False  # admitted on reserved throughput
    choices: int  # a prompt
    prompts: int
    estimate: int
    cap: int
    started_ms: int
    epoch: str
    attempts: tuple[AttemptImage, ...]
    progress: Progress | None
    ended: EndedImage | None


class Torn(msgspec.Struct, frozen=True):
    """A slot in use whose identity fails its checksum: only a host crash leaves one."""

    index: int


def ids_of(tenant_id: int, project_id: int, key_id: int, model_id: int, price_id: int) -> bytes:
    """The rows that a slot names, as it has them: SQL ids, 0 = no price. Raises ``struct.error`` beyond
    0..2^32-1.
    """
    return IDS.pack(tenant_id, project_id, key_id, model_id, price_id)


def decode_slot(data: bytes, index: int = -1, *, of_first: bool = False) -> SlotImage | Torn | None:
    """One slot's 256 bytes; None = free. Never raises on any 256 bytes. ``of_first``: of a board that
    the first release made, whose checksums began with the generation's own.
    """
    if data[0] == SlotState.FREE:
        return None
    identity = data[IDENTITY_AT:IDENTITY_CRC_AT]
    fields = IDENTITY.unpack(identity)
    operation = fields[0] & ~RESERVED_BIT
    known = data[0] <= SlotState.ENDED and operation < len(OPERATIONS)
    if not known or crc32(identity) != CRC.unpack_from(data, IDENTITY_CRC_AT)[0]:
        return Torn(index)
    choices, generation, request_id, ids, prompts, estimate, cap, started_ms = fields[1:]
    tenant, project, key, model, price = IDS.unpack(ids)
    salt = crc32(CRC.pack(generation)) if of_first else generation
    attempts = _decode_attempts(data)
    return SlotImage(
        index=index,
        state=SlotState(data[0]),
        generation=generation,
        request_id=request_id.hex(),
        tenant_id=tenant,
        project_id=project,
        key_id=key,
        model_id=model,
        price_id=price,
        operation=OPERATIONS[operation],
        reserved=bool(fields[0] & RESERVED_BIT),
        choices=choices,
        prompts=prompts,
        estimate=estimate,
        cap=cap,
        started_ms=started_ms,
        epoch=_decode_epoch(data, salt),
        attempts=attempts,
        progress=_decode_progress(data, salt, attempts[-1].number) if attempts else None,
        ended=_decode_ended(data, salt),
    )


def _decode_epoch(data: bytes, salt: int) -> str:
    name, check = EPOCH.unpack_from(data, EPOCH_AT)
    name = name.rstrip(b"\0")
    return str(name, "ascii", "replace") if crc32(name, salt) == check else ""


def _decode_attempts(data: bytes) -> tuple[AttemptImage, ...]:
    """The attempts up to the first unused entry, in the order they were made."""
    found = []
    for each in range(ATTEMPTS_MAX):
        fields = ATTEMPT.unpack_from(data, ATTEMPTS_AT + each * ATTEMPT.size)
        endpoint, started, ended, prompt, completion, status, number, state = fields
        if state not in (AttemptState.DISPATCHED, AttemptState.FAILED):
            break
        failed = state == AttemptState.FAILED
        found.append(
            AttemptImage(number, endpoint, started, ended, status, prompt, completion, failed)
        )
    return tuple(found)


def _decode_progress(data: bytes, salt: int, attempt: int) -> Progress | None:
    """The newer of the whole halves, if it is of that attempt. Sequences wrap at 2^24."""
    newest: tuple[int, Progress] | None = None
    for each in range(2):
        at = HALVES_AT + each * HALF.size
        prompt, completion, tag, check = HALF.unpack_from(data, at)
        if crc32(data[at : at + COUNTS.size], salt) != check:
            continue
        if tag >> 1 & 0x7F != attempt:
            continue
        sequence = tag >> 8
        if newest is None or (sequence - newest[0]) % (1 << _SEQUENCE_BITS) < 1 << 23:
            newest = (sequence, Progress(attempt, prompt, completion, bool(tag & 1)))
    return newest[1] if newest else None


def _decode_ended(data: bytes, salt: int) -> EndedImage | None:
    block = data[ENDED_AT : ENDED_AT + ENDED.size]
    prompt, cached, completion, reasoning, total_ms, ttft_ms, status, outcome, source = (
        ENDED.unpack(block)
    )
    whole = crc32(block, salt) == CRC.unpack_from(data, ENDED_AT + ENDED.size)[0]
    if data[0] != SlotState.ENDED or not whole:
        return None
    if outcome >= len(OUTCOMES) or source >= len(SOURCES):
        return None
    return EndedImage(
        OUTCOMES[outcome],
        SOURCES[source],
        prompt,
        cached,
        completion,
        reasoning,
        status,
        ttft_ms,
        total_ms,
    )
