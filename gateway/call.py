"""One request on its way through the gateway: what came in, and what has become of it so far."""

from typing import Literal

import msgspec

from gateway.contract.envelope import Envelope
from gateway.contract.errors import ContractError, Overdue
from gateway.exchange import Exchange
from gateway.telemetry.tracing import TraceContext
from gateway.wire.relay import Relay
from gateway.wire.server import Reply, Request
from quotas.leases import Draw

Stop = Literal["client_abort", "timeout", "shutdown", "key_revoked"]


class Call(msgspec.Struct, eq=False):
    """Mutable; one per request, whatever it asks for. ``claim``: the name that it holds for its
    Idempotency-Key; ``draw``: on limits that all tenants share. ``stopped``: the first reason to end
    early, with the error the client is told where it can still be told.
    """

    request: Request
    reply: Reply
    request_id: str
    trace: TraceContext
    status: int = 0
    claim: str = ""
    draw: Draw | None = None
    envelope: Envelope | None = None
    exchange: Exchange | None = None
    relay: Relay | None = None
    stopped: tuple[Stop, ContractError | None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.request_id}>"  # and nothing of what it says

    def leave(self) -> None:
        """Its client has left."""
        self.stop("client_abort")

    def expire(self) -> None:
        """Its time is up."""
        self.stop("timeout", Overdue())

    def stop(self, ending: Stop, error: ContractError | None = None) -> None:
        """End it wherever it stands. A client that has left needs no error."""
        if self.stopped is None:
            self.stopped = (ending, error)
            if self.relay is not None:
                self.relay.stop(ending, error)


def id_lines(request_id: str) -> bytes:
    """The same two as lines of a head; the id is ours, hex digits."""
    return f"x-request-id: {request_id}\r\nrequest-id: {request_id}\r\n".encode()


def id_headers(request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    """``x-request-id`` as OpenAI's clients read it, ``request-id`` as Anthropic's do."""
    value = request_id.encode()
    return ((b"x-request-id", value), (b"request-id", value))
