"""The pen for one slot of the board: each step of a request, stored as it happens.

A step is one store of a block with its checksum, and then the one byte that makes it true. It is the hot
path of every request and every chunk: few calls, no allocation that can be spared, found names for what
``struct`` does. Not here: the file (``board``), what a reader makes of the bytes (``slots``).
"""

import mmap
import struct
from struct import Struct
from zlib import crc32

from gateway.metering.slots import (
    ATTEMPT,
    ATTEMPTS_AT,
    ATTEMPTS_MAX,
    COUNTS,
    ENDED,
    ENDED_AT,
    EPOCH_AT,
    EPOCH_BYTES,
    FIRST,
    HALF,
    HALVES_AT,
    IDENTITY,
    IDENTITY_AT,
    OUTCOMES,
    SLOT_BYTES,
    SOURCES,
    U32,
)
from quotas.record import UsageRecord

_OUTCOME_CODE = {name: code for code, name in enumerate(OUTCOMES)}
_SOURCE_CODE = {name: code for code, name in enumerate(SOURCES)}
#: One more in the 24 bits of a tag that are its sequence.
_TURN = 1 << 8
#: A block and its checksum in one store; the identity's clears all that follows it.
_FRESH = Struct(f"<{IDENTITY.size}sI{SLOT_BYTES - EPOCH_AT}x")
_CHECKED_HALF = Struct(f"<{COUNTS.size}sI")
#: What is added to an attempt when it failed; its state follows by itself.
_FAILED = Struct("<3IH")
_FAILED_AT, _ATTEMPT_STATE_AT = 8, 23
_CHECKED_END = Struct(f"<{ENDED.size}sI")
#: Found once, not at each step of each request.
_pack_identity, _pack_counts, _pack_ended = IDENTITY.pack, COUNTS.pack, ENDED.pack
_store_fresh, _store_half = _FRESH.pack_into, _CHECKED_HALF.pack_into
_store_end, _store_first = _CHECKED_END.pack_into, FIRST.pack_into
_store_attempt = ATTEMPT.pack_into
_METERS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_ATTEMPT_AT = tuple(ATTEMPTS_AT + each * ATTEMPT.size for each in range(ATTEMPTS_MAX))


class Slot:
    """Made by ``Board``; used between ``Board.claim`` and ``free``.

    Counts are what an engine said and are cut to 0..2^32-1.
    """

    __slots__ = (
        "_base",
        "_ended_at",
        "_epoch",
        "_epoch_at",
        "_free",
        "_generation",
        "_halves",
        "_identity_at",
        "_map",
        "_started_ms",
        "_turn",
        "claimed",
        "index",
    )

    def __init__(self, mapping: mmap.mmap, base: int, index: int, free: "list[Slot]") -> None:
        self.index = index
        self.claimed = False
        self._free = free
        self._map = mapping
        self._base = base
        self._identity_at, self._epoch_at = base + IDENTITY_AT, base + EPOCH_AT
        self._halves = (base + HALVES_AT, base + HALVES_AT + HALF.size)
        self._ended_at = base + ENDED_AT
        self._generation = 0
        self._epoch = b""
        self._turn = 0  # the sequence of the last half, where its tag has it
        self._started_ms = 0

    def reserving(
        self,
        request_id: bytes,
        ids: bytes,
        operation: int,
        choices: int,
        prompts: int,
        estimate: int,
        cap: int,
        started_ms: int,
    ) -> None:
        """Who and what, before the store is asked. ``request_id`` is 16 bytes; ``ids`` as ``ids_of`` makes them; ``operation`` an
        index into ``OPERATIONS``, perhaps with ``RESERVED_BIT``; ``choices`` a prompt; ``estimate`` and ``cap`` in tokens.
        """
        generation = self._generation = self._generation + 1 & U32
        self._turn = 0
        self._started_ms = started_ms
        try:
            identity = _pack_identity(
                operation, choices, generation, request_id, ids, prompts, estimate, cap, started_ms
            )
        except struct.error:  # sizes are the caller's words and may be absurd
            sizes = (_cut(prompts), _cut(estimate), _cut(cap))
            choices = min(choices, 0xFFFF)
            identity = _pack_identity(
                operation, choices, generation, request_id, ids, *sizes, started_ms
            )
        mapping = self._map
        _store_fresh(mapping, self._identity_at, identity, crc32(identity))
        mapping[self._base] = 1

    def reserved(self, epoch: str) -> None:
        """The store holds the reservation under ``epoch`` (<= 24 ASCII characters). A release asks for
        no epoch, so it enters the slot with the first attempt.
        """
        name = self._epoch = epoch.encode("ascii")
        if len(name) > EPOCH_BYTES:
            raise ValueError(f"an epoch has at most {EPOCH_BYTES} characters, got {len(epoch)}")
        self._map[self._base] = 2

    def dispatched(self, attempt: int, endpoint_id: int, now_ms: int) -> None:
        """Attempt number ``attempt`` (0..) is about to send its first byte to the endpoint, at
        ``now_ms`` (Unix).

        Attempts past the fourth overwrite the fourth's entry.
        """
        mapping, since_ms = self._map, now_ms - self._started_ms
        if not 0 <= since_ms <= U32:
            since_ms = _cut(since_ms)  # a clock that was set
        if attempt:
            at, number = self._attempt_at(attempt), attempt & 0x7F
            _store_attempt(mapping, at, endpoint_id, since_ms, 0, 0, 0, 0, number, 1)
        else:
            name = self._epoch
            check = crc32(name, self._generation)
            _store_first(mapping, self._epoch_at, name, check, endpoint_id, since_ms, 1)
        mapping[self._base] = 3

    def progress(
        self,
        attempt: int,
        prompt: int,
        completion: int,
        delivered: bool = False,  # noqa: FBT001, FBT002 -- the hot path takes no keywords
    ) -> None:
        """The engine's counts so far, before the frame that carries them goes to the client.

        ``delivered``: text goes out with this frame although no count says so (a count > 0 says
        it by itself).
        """
        turn = self._turn + _TURN & U32
        tag = turn | (attempt & 0x7F) << 1 | (delivered or completion > 0)
        try:
            counts = _pack_counts(prompt, completion, tag)
        except struct.error:  # an engine that counts below zero or past 2^32
            self.progress(attempt, _cut(prompt), _cut(completion), delivered)
            return
        self._turn = turn
        _store_half(self._map, self._halves[turn >> 8 & 1], counts, crc32(counts, self._generation))

    def attempt_failed(self, attempt: int, status: int, now_ms: int) -> None:
        """The attempt ended before commit, at ``now_ms`` (Unix); its counts so far stay with it.
        ``status`` 0: none came.
        """
        mapping, at = self._map, self._attempt_at(attempt)
        half = HALF.unpack_from(mapping, self._halves[self._turn >> 8 & 1])
        prompt, completion = half[:2] if half[2] >> 1 & 0x7F == attempt & 0x7F else (0, 0)
        ended_ms = _cut(now_ms - self._started_ms)
        _FAILED.pack_into(mapping, at + _FAILED_AT, ended_ms, prompt, completion, status & 0xFFFF)
        mapping[at + _ATTEMPT_STATE_AT] = 2

    def ended(self, record: UsageRecord) -> None:
        """The final counts and the outcome, before the record is written."""
        usage = record.usage
        try:
            block = _pack_ended(
                usage["prompt_tokens"],
                usage["cached_tokens"],
                usage["completion_tokens"],
                usage["reasoning_tokens"],
                record.total_ms,
                record.ttft_ms,
                record.status,
                _OUTCOME_CODE[record.outcome],
                _SOURCE_CODE[record.source],
            )
        except struct.error:  # an engine's counts, or a clock that was set
            block = _ended_cut(record)
        mapping = self._map
        _store_end(mapping, self._ended_at, block, crc32(block, self._generation))
        mapping[self._base] = 4

    def free(self) -> None:
        """The request has left nothing to do; the slot may be claimed again. Once a claim."""
        if not self.claimed:
            raise RuntimeError(f"slot {self.index} is freed twice")
        self.claimed = False
        self._map[self._base] = 0
        self._free.append(self)

    def _attempt_at(self, attempt: int) -> int:
        return self._base + (_ATTEMPT_AT[attempt] if attempt < ATTEMPTS_MAX else _ATTEMPT_AT[-1])


def _cut(count: int) -> int:
    return 0 if count < 0 else min(count, U32)


def _ended_cut(record: UsageRecord) -> bytes:
    """The block of an ending whose numbers fit no block."""
    counts = [_cut(record.usage[name]) for name in _METERS]
    ttft_ms, status = max(-1, min(record.ttft_ms, 0x7FFFFFFF)), record.status & 0xFFFF
    codes = _OUTCOME_CODE[record.outcome], _SOURCE_CODE[record.source]
    return _pack_ended(*counts, _cut(record.total_ms), ttft_ms, status, *codes)
