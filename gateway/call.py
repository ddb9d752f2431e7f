"""One request on its way through the gateway: what came in, and what has become of it so far."""

from typing import Literal

from gateway.contract.envelope import Envelope
from gateway.contract.errors import ContractError
from gateway.exchange import Exchange
from gateway.telemetry.tracing import TraceContext
from gateway.wire.relay import Relay
from gateway.wire.server import Reply, Request
from quotas.leases import Draw

Stop = Literal["client_abort", "timeout", "shutdown", "key_revoked"]


class Call:
    """Mutable; one per request, whatever it asks for. ``stopped``: the first reason to end early,
    with the error the client is told where it can still be told.
    """

    __slots__ = (
        "claim",
        "draw",
        "envelope",
        "exchange",
        "relay",
        "reply",
        "request",
        "request_id",
        "status",
        "stopped",
        "trace",
    )

    def __init__(
        self, request: Request, reply: Reply, request_id: str, trace: TraceContext
    ) -> None:
        self.request = request
        self.reply = reply
        self.request_id = request_id
        self.trace = trace
        self.status = 0
        self.claim = ""  # the name that this request holds for its Idempotency-Key
        self.draw: Draw | None = None  # on limits that all tenants share
        self.envelope: Envelope | None = None
        self.exchange: Exchange | None = None
        self.relay: Relay | None = None
        self.stopped: tuple[Stop, ContractError | None] | None = None

    @property
    def streams(self) -> bool:
        return self.envelope is not None and self.envelope.stream

    def stopping(self) -> tuple[Stop, ContractError | None] | None:
        """``stopped``, asked anew: it changes while the caller waits."""
        return self.stopped

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
