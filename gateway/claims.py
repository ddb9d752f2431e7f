"""The Idempotency-Key of a request: one name of a project is one request, until a day after its end.

A second request of the name is told the first one's id; nothing is replayed and no answer is kept. The
names' claims lie in the store (``quotas.ports``). Not here: who is first where two come at once.
"""

from gateway import identity
from gateway.admission import Admission
from gateway.call import Call
from gateway.contract.errors import IdempotencyKeyUsed, InvalidBody, StoreAway
from gateway.snapshot import Principal
from quotas.errors import StoreUnavailable

KEY_BYTES_MAX = 255


class Claims:
    """One per data process."""

    def __init__(self, admission: Admission, pepper: bytes) -> None:
        self._admission = admission
        self._pepper = pepper

    async def take(self, call: Call, principal: Principal, ttl_s: int) -> None:
        """Claim the request's key, if it has one. Raises ``InvalidBody``, ``IdempotencyKeyUsed`` and
        ``StoreAway``.
        """
        text = call.request.header(b"idempotency-key")
        if text is None:
            return
        if not 0 < len(text) <= KEY_BYTES_MAX:
            raise InvalidBody(
                f"The Idempotency-Key header has 1 to {KEY_BYTES_MAX} characters.", None
            )
        said = f"{principal.project.id}:{text.decode('latin-1')}"
        name = identity.digest(self._pepper, said).hex()[:32]
        try:
            first = await self._admission.claim(principal, name, call.request_id, ttl_s)
        except StoreUnavailable:
            raise StoreAway from None
        if first != call.request_id:
            raise IdempotencyKeyUsed(first)
        call.claim = name

    def give_back(self, call: Call, principal: Principal) -> None:
        """No engine saw the request: its key may come again."""
        if call.claim:
            self._admission.unclaim(principal, call.claim, call.request_id)
