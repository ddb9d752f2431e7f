"""API keys: how one looks, how it is checked offline, and what is kept of it.

``tf_<env>_<kid>_<secret><crc>``: kid 10 and secret 43 characters of base62 (256 bits), then the CRC-32
of all before as 6, so that a typo or a scanner's false hit is refused without a look-up. At rest
only HMAC-SHA-256 with a pepper: a fast hash is right for a secret of 256 bits. Pure: randomness is
an argument. Not here: who a key belongs to (``gateway.snapshot``).
"""

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable

import msgspec

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KID_LENGTH = 10
SECRET_LENGTH = 43
CRC_LENGTH = 6
_TOKEN = re.compile(r"tf_[a-z]{1,8}_([0-9A-Za-z]{10})_[0-9A-Za-z]{49}\Z", re.ASCII)


class MintedKey(msgspec.Struct, frozen=True):
    """``token`` is shown once and kept nowhere; ``last4`` may be shown."""

    token: str
    kid: str
    last4: str


def mint(env: str, random_bytes: Callable[[int], bytes]) -> MintedKey:
    """A new key. ``random_bytes(n)`` must be the system's secure source."""
    kid = _base62(int.from_bytes(random_bytes(8), "big"), KID_LENGTH)
    secret = _base62(int.from_bytes(random_bytes(33), "big"), SECRET_LENGTH)
    bare = f"tf_{env}_{kid}_{secret}"
    return MintedKey(bare + _checksum(bare), kid, secret[-4:])


def parse(token: str) -> str | None:
    """The kid of a well-formed token with a right checksum, else None."""
    match = _TOKEN.match(token)
    if match is None or _checksum(token[:-CRC_LENGTH]) != token[-CRC_LENGTH:]:
        return None
    return match[1]


def digest(pepper: bytes, token: str) -> bytes:
    """What is kept of a token: 32 bytes."""
    return hmac.digest(pepper, token.encode("latin-1", "replace"), "sha256")


def matches(left: bytes, right: bytes) -> bool:
    """In constant time."""
    return hmac.compare_digest(left, right)


def user_digest(pepper: bytes, user: str) -> str:
    """An end user as limits know them: 16 hexadecimal digits, the same on every host."""
    keyed = hashlib.blake2b(
        user.encode(), digest_size=8, key=pepper[: hashlib.blake2b.MAX_KEY_SIZE]
    )
    return keyed.hexdigest()


def fingerprint(pepper: bytes) -> str:
    """Tells two peppers apart and gives neither away."""
    return hashlib.sha256(b"tokenfactory pepper:" + pepper).hexdigest()[:16]


def _checksum(bare: str) -> str:
    return _base62(zlib.crc32(bare.encode()), CRC_LENGTH)


def _base62(number: int, length: int) -> str:
    """The lowest ``length`` digits, most significant first."""
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(ALPHABET[rest])
    return "".join(reversed(digits))
