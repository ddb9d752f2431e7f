"""The keep-alive connections to one endpoint, and the heads of requests to it.

Last in, first out; an idle one lives shorter than the engine keeps it (vLLM: 5 s), so that a request
rarely meets a socket the engine is about to close. Upstream gets only the headers named here.
"""

import asyncio
from collections.abc import Sequence

from gateway.wire.dial import Address, dial
from gateway.wire.upstream import Upstream

_NO_LENGTH = b"content-length: 0\r\n\r\n"


class Pool:
    """One per endpoint and process. ``credential`` is the endpoint's own key, or None."""

    def __init__(
        self,
        address: Address,
        *,
        idle_s: float = 4.0,
        ca_file: str | None = None,
        credential: bytes | None = None,
    ) -> None:
        self._address = address
        self._idle_s = idle_s
        self._ca_file = ca_file
        self._loop = asyncio.get_running_loop()
        self._idle: list[Upstream] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        fixed = [b"host: " + address.host_header, b"accept-encoding: identity"]
        if credential is not None:
            fixed.append(b"authorization: Bearer " + credential)
        self._fixed = b"\r\n".join(fixed) + b"\r\n"
        self._prefix = address.prefix.encode()
        self._begun: dict[tuple[bytes, bytes], bytes] = {}

    @property
    def idle(self) -> int:
        return len(self._idle)

    def acquire(self) -> Upstream | None:
        """An idle connection that still lives and has nothing to say unasked, or None."""
        oldest_s = self._loop.time() - self._idle_s
        while self._idle:
            upstream = self._idle.pop()
            if upstream.reusable and upstream.idle_since_s > oldest_s and upstream.quiet():
                return upstream
            upstream.abort()
        return None

    async def connect(self, connect_timeout_s: float) -> Upstream:
        """A new connection; raises ``ConnectFailed``."""
        return await dial(
            self._address,
            Upstream,
            connect_timeout_s=connect_timeout_s,
            ca_file=self._ca_file,
        )

    def give_back(self, upstream: Upstream) -> None:
        """After a response that ended cleanly, or before any request."""
        if not upstream.reusable or self._closed:
            upstream.abort()
            return
        if upstream.paused:
            upstream.resume()
        upstream.idle_since_s = self._loop.time()
        self._idle.append(upstream)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._idle_s, self._sweep_idle)

    def request_head(
        self, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], body_bytes: int
    ) -> bytes:
        """A request head with the endpoint's fixed headers and the body's length."""
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        return b"%b %b%b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
            method, self._prefix, path, self._fixed, lines, body_bytes,
        )  # fmt: skip

    def json_head(
        self, path: bytes, accept: bytes, request_id: str, traceparent: bytes, body_bytes: int
    ) -> bytes:
        """The head of an inference request: what of it is always the same is made once."""
        begun = self._begun.get((path, accept))
        if begun is None:
            fixed = [(b"content-type", b"application/json"), (b"accept", accept)]
            begun = self.request_head(b"POST", path, fixed, 0).removesuffix(_NO_LENGTH)
            self._begun[path, accept] = begun
        return begun + b"x-request-id: %b\r\ntraceparent: %b\r\ncontent-length: %d\r\n\r\n" % (
            request_id.encode(), traceparent, body_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Idle connections close now; one in use closes when it is given back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().abort()

    def _sweep_idle(self) -> None:
        self._sweep = None
        oldest_s = self._loop.time() - self._idle_s
        kept = []
        for upstream in self._idle:
            if upstream.reusable and upstream.idle_since_s > oldest_s:
                kept.append(upstream)
            else:
                upstream.abort()
        self._idle = kept
        if kept:
            self._sweep = self._loop.call_later(self._idle_s, self._sweep_idle)
