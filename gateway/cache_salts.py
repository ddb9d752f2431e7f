"""A salt per tenant for the engines' prefix caches: nobody can probe another's prompts by their speed.

base64url of an HMAC, 43 characters: some engines die of odd ones (CVE-2026-105756).
"""

import base64
import hashlib
import hmac
from collections.abc import Callable


def cache_salts(pepper: bytes) -> Callable[[int], str]:
    """From a tenant's id to its salt; the same for the life of the pepper."""
    known: dict[int, str] = {}

    def salt(tenant_id: int) -> str:
        made = known.get(tenant_id)
        if made is None:
            mac = hmac.new(pepper, b"cache-salt:%d" % tenant_id, hashlib.sha256).digest()
            made = known[tenant_id] = base64.urlsafe_b64encode(mac)[:43].decode()
        return made

    return salt
