"""One request, one whole answer: probes, scrapes, /tokenize, and deliveries to receivers.

On the same dial and the same parser as the data plane, so that the same policy holds. Not a client
for anything else.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from gateway.wire.dial import Address, ConnectFailed, dial
from gateway.wire.upstream import Upstream, UpstreamCut


class Fetched(msgspec.Struct, frozen=True):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class FetchFailed(Exception):
    """No whole answer: refused, cut, too slow or too large."""


class _Whole:
    """Collects a response."""

    def __init__(self, max_bytes: int) -> None:
        self.done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self._max_bytes = max_bytes
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._size = 0

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        self._headers = headers

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            self._fail("the answer is too large")
            return
        self._parts.append(data)

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result(Fetched(self._status, self._headers, b"".join(self._parts)))

    def on_cut(self, failure: UpstreamCut) -> None:
        self._fail(failure.reason)

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(FetchFailed(reason))


async def fetch(
    address: Address,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    timeout_s: float = 5.0,
    max_bytes: int = 4 << 20,
    ca_file: str | None = None,
    policy: Callable[[str], None] | None = None,
) -> Fetched:
    """The whole answer, whatever its status. Raises ``FetchFailed``. ``policy``: as ``dial``'s."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n" % (
        method.encode(), (address.prefix + path).encode(), address.host_header, lines, len(body),
    )  # fmt: skip
    upstream: Upstream | None = None
    try:
        async with asyncio.timeout(timeout_s):
            upstream = await dial(
                address, Upstream, connect_timeout_s=timeout_s, ca_file=ca_file, policy=policy
            )
            whole = _Whole(max_bytes)
            upstream.send(head, body, whole)
            return await whole.done
    except TimeoutError:
        raise FetchFailed("no answer in time") from None
    except ConnectFailed as failure:
        raise FetchFailed(failure.reason) from None
    finally:
        if upstream is not None:
            upstream.abort()
