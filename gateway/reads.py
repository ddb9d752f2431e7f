"""The lane for ``/v1`` paths that need SQL: asked over the link, few at once, two seconds at most.

Apart from inference on purpose: a slow database or a key that polls its usage takes places here and
nowhere else. Not here: the answers (``gateway.control.reads``), who may ask (``gateway.routes``).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import msgspec

from gateway.contract.errors import StoreAway, TooManyReads
from gateway.link.client import LinkAway
from gateway.link.messages import Read, ReadAnswer
from gateway.snapshot import Principal

#: Every path that is answered over the link. Each has its function in ``gateway.control.reads``.
PATHS = frozenset({"/v1/generation", "/v1/usage"})
READS_MAX = 8
#: Of one key, those that wait for a place included.
READS_PER_KEY_MAX = 4
READ_S = 2.0

Ask = Callable[[str, bytes, float], Awaitable[bytes]]


class ReadLane:
    """One per data process. ``ask`` is the link's."""

    def __init__(self, ask: Ask, timeout_s: float = READ_S) -> None:
        self._ask = ask
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(READS_MAX)
        self._of_key: Counter[int] = Counter()

    async def read(self, principal: Principal, path: str, query: str) -> ReadAnswer:
        """Control's answer. Raises ``TooManyReads``, and ``StoreAway`` when there is none in time."""
        key_id = principal.key.id
        if self._of_key[key_id] >= READS_PER_KEY_MAX:
            raise TooManyReads(READS_PER_KEY_MAX)
        values = {name: given[0] for name, given in parse_qs(query, keep_blank_values=True).items()}
        question = Read(path, values, principal.tenant.id, principal.project.id, key_id)
        self._of_key[key_id] += 1
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                body = await self._ask("read", msgspec.msgpack.encode(question), self._timeout_s)
        except (TimeoutError, LinkAway):
            raise StoreAway("this cannot be looked up right now") from None
        finally:
            self._of_key[key_id] -= 1
            if not self._of_key[key_id]:
                del self._of_key[key_id]
        return msgspec.msgpack.decode(body, type=ReadAnswer)
