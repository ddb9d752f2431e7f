"""What a key may look up on ``/v1`` and only SQL knows, asked over the link: one function a path.

A function gives the JSON value of a 200, or raises a ``ContractError``. It sees what belongs to the
asking key alone: ids come from the data process, which has authenticated it. A new path is a line in
``gateway.control.core`` and one in ``gateway.reads.PATHS``. Not here: the lane's bounds
(``gateway.reads``).
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from gateway.contract.errors import ContractError, error_body
from gateway.link.messages import Read, ReadAnswer
from gateway.link.server import Peer

Look = Callable[[Read], Awaitable[object]]


class Reads:
    """The link's handler of ``read``."""

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self.looks = looks

    async def on_read(self, _peer: Peer, body: bytes) -> bytes:
        """A ``ReadAnswer``. Raises what the database raises: the asker is told we are away."""
        question = msgspec.msgpack.decode(body, type=Read)
        try:
            found = await self.looks[question.path](question)
        except ContractError as error:
            said = error_body(error.message, error.type, error.param, error.code)
            answer = ReadAnswer(error.status, said, error.retry_after_ms)
        else:
            answer = ReadAnswer(200, msgspec.json.encode(found))
        return msgspec.msgpack.encode(answer)
