"""A request as the handler gets it: whole, checked, with its body."""

import ipaddress

import msgspec

from gateway.wire.guard import Head

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


class Request(msgspec.Struct, frozen=True, eq=False):
    """``arrived_s``: loop time of the first byte. ``peer``: the client's address, from
    X-Forwarded-For only where a trusted proxy says it.
    """

    head: Head
    body: bytes
    peer: str
    arrived_s: float
    method: str  # as ``head`` has these three
    path: str
    query: str

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"  # and nothing of its body and head

    def header(self, name: bytes) -> bytes | None:
        """The first header of a lower-case name."""
        return self.head.fields.get(name)


def networks_of(text: str) -> Networks:
    """``TF_TRUSTED_PROXIES``, separated by commas; raises ``ValueError`` naming the bad one."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


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
