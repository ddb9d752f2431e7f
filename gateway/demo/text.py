"""The demo model: a tokenizer of about four bytes a token, and seeded English that never ends.

Same prompt, same seed, same text, on every machine. Not a language model, and not a tokenizer of one:
its counts are only consistent with themselves. Pure.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

VOCABULARY = 32_000
#: A word with its space, a number, a mark, white space. One alternative always fits: no text is lost.
PIECE = re.compile(r" ?[^\W\d_]{1,9}|\d{1,3}|[^\w\s]|\s+|\w")

_SUBJECTS = (
    "The scheduler", "A busy replica", "The prefix cache", "Each decoding step", "The front door",
    "A patient client", "The naïve estimate", "One tenant", "The ledger", "A warm pool",
    "The tokenizer", "An idle card", "The queue", "Every long prompt", "The operator",
)  # fmt: skip
_VERBS = (
    "keeps", "measures", "shares", "fills", "drains", "explains", "predicts", "returns", "counts",
    "protects", "remembers", "orders", "smooths", "forgets", "admits",
)  # fmt: skip
_OBJECTS = (
    "the next batch", "its own budget", "a steady stream of tokens", "the last forty requests",
    "what the model has already seen", "the slowest answer", "a few megabytes of cache",
    "the price of a million tokens", "an honest number", "the same promise twice",
    "every word of the café's menu", "the work of an hour",
)  # fmt: skip
_TAILS = (
    "before anyone asks", "while the others wait", "without a second copy", "at a fair rate",
    "in eight milliseconds", "when the load is high", "and then it rests", "until the very end",
    "on three cards out of four", "as the contract says",
)  # fmt: skip
_LINKS = (". ", ". ", ". ", "… ", ".\n\n")


def pieces(text: str) -> list[str]:
    """The text, cut into tokens; their concatenation is the text."""
    return [found.group() for found in PIECE.finditer(text)]


def token_ids(text: str, limit: int | None = None) -> list[int]:
    """The ids of at most ``limit`` tokens, each in 3..``VOCABULARY`` - 1."""
    return [token_id(found.group()) for found in islice(PIECE.finditer(text), limit)]


def token_id(piece: str) -> int:
    return 3 + zlib.crc32(piece.encode("utf-8", "replace")) % (VOCABULARY - 3)


def story(seed: int, prompt: Sequence[int], choice: int) -> Iterator[str]:
    """Tokens of an answer, one after the other, without end."""
    draw = _draws(struct.pack("<qq", _signed(seed), choice) + _fingerprint(prompt))
    while True:
        tail = f" {_pick(_TAILS, draw)}" if next(draw) % 2 else ""
        sentence = f"{_pick(_SUBJECTS, draw)} {_pick(_VERBS, draw)} {_pick(_OBJECTS, draw)}{tail}"
        yield from pieces(sentence + _pick(_LINKS, draw))


def answer_length(seed: int, prompt: Sequence[int], choice: int, low: int, high: int) -> int:
    """After how many tokens, ``low`` to ``high``, an answer ends by itself."""
    crc = zlib.crc32(_fingerprint(prompt), (seed + choice) & 0xFFFFFFFF)
    return low + crc % (high - low + 1)


def vector(text: bytes, dimensions: int) -> list[float]:
    """An embedding of length 1 that depends on every byte of the text."""
    raw = hashlib.shake_256(text).digest(2 * dimensions)
    drawn = [value / 32_768 for value in struct.unpack(f"<{dimensions}h", raw)]
    norm = sum(value * value for value in drawn) ** 0.5 or 1.0
    return [round(value / norm, 8) for value in drawn]


def _fingerprint(prompt: Sequence[int]) -> bytes:
    packed = struct.pack(f"<{len(prompt)}I", *prompt)
    return hashlib.blake2b(packed, digest_size=8).digest()


def _draws(key: bytes) -> Iterator[int]:
    """Numbers 0..255 from a hash in counter mode: the same on every version of the language."""
    block = 0
    while True:
        yield from hashlib.blake2b(key + block.to_bytes(8, "little")).digest()
        block += 1


def _pick(words: Sequence[str], draw: Iterator[int]) -> str:
    return words[next(draw) % len(words)]


def _signed(seed: int) -> int:
    """Any integer as one of 64 bits."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
