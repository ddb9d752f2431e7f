"""A request as the handler gets it: whole, checked, with its body."""

import ipaddress

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


class Request:
    """``arrived_s``: loop time of the first byte. ``peer``: the client's address, from
    X-Forwarded-For only where a trusted proxy says it.
    """

    __slots__ = (
        "arrived_s",
        "body",
        "fields",
        "headers",
        "method",
        "path",
        "peer",
        "query",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        peer: str,
        arrived_s: float,
        fields: dict[bytes, bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        path, _, query = target.decode("latin-1").partition("?")
        self.path = path
        self.query = query
        self.headers = headers
        self.fields = dict(reversed(headers)) if fields is None else fields
        self.body = body
        self.peer = peer
        self.arrived_s = arrived_s

    def header(self, name: bytes) -> bytes | None:
        """The first header of a lower-case name."""
        return self.fields.get(name)


def client_address(peer: str, headers: list[tuple[bytes, bytes]], trusted: Networks) -> str:
    """The rightmost address that no trusted proxy owns; the peer itself when it is a stranger."""
    if not is_trusted(peer, trusted):
        return peer
    forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    address = peer
    for each in reversed(forwarded.decode("latin-1").split(",")):
        candidate = each.strip()
        try:
            ipaddress.ip_address(candidate)
        except ValueError:
            return address
        address = candidate
        if not is_trusted(candidate, trusted):
            break
    return address


def is_trusted(address: str, trusted: Networks) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
