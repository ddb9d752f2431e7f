"""Statements signed and checked: Ed25519 (RFC 8032) over their canonical bytes.

A signed file carries the statement, the signature and the public key; whoever has the file checks
it without us. Which key to trust is the reader's to say. Not here: where the seed is kept
(``gateway.datafolder``), what a statement says (``quotas.statement``).
"""

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quotas.errors import MoneyError
from quotas.statement import FORMAT, Statement, canonical, checked

ALGORITHM = "Ed25519"
SEED_BYTES = 32


class NotGenuine(Exception):
    """A file that is not what its signer signed; the message says what is wrong with it."""


class Signer:
    """``seed``: 32 bytes as hexadecimal text, kept secret."""

    def __init__(self, seed: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, document: bytes) -> tuple[bytes, bytes]:
        """(signature, public key)."""
        return self._key.sign(document), self.public_key


def fingerprint(public_key: bytes) -> str:
    """What people compare: the first 16 bytes of the key's SHA-256, hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def signed_file(document: bytes, signature: bytes, public_key: bytes) -> bytes:
    """The file of a closed statement."""
    said = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(public_key).decode(),
        "signature": base64.b64encode(signature).decode(),
        "statement": msgspec.Raw(document),
    }
    return msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"


def verify(data: bytes) -> tuple[Statement, bytes]:
    """(the statement, the public key it was signed with); raises ``NotGenuine``.

    The signature holds over every name and value, whatever the layout; the sums are checked again.
    """
    try:
        said: Any = msgspec.json.decode(data)
        public_key = base64.b64decode(said["public_key"], validate=True)
        signature = base64.b64decode(said["signature"], validate=True)
        algorithm, body = said["algorithm"], said["statement"]
    except (msgspec.MsgspecError, binascii.Error, KeyError, TypeError, ValueError):
        raise NotGenuine("not a signed statement") from None
    if algorithm != ALGORITHM or not isinstance(body, dict):
        raise NotGenuine(f"signed with {algorithm!r}, expected {ALGORITHM}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, canonical(body))
    except (InvalidSignature, ValueError):
        raise NotGenuine("the signature does not fit: the statement was changed") from None
    try:
        statement = msgspec.convert(body, Statement, strict=True)
        if statement.format != FORMAT:
            raise NotGenuine(f"a statement of another kind: {statement.format}")
        checked(statement, statement.charged_nano)
    except (msgspec.MsgspecError, MoneyError) as error:
        raise NotGenuine(str(error)) from None
    return statement, public_key
