"""Which addresses a receiver may have: what no receiver lives at is refused, on the address dialled.

Receivers are named by operators, whose own networks and loopback are theirs to name. Refused are the
links of the host itself, where clouds keep credentials (169.254.169.254 and its kin), and what is no
host: unspecified, multicast, reserved. Addresses that carry another one (IPv4-mapped, NAT64, 6to4,
Teredo) are judged by what they carry. Not here: the dial (``gateway.wire.dial``).
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from gateway.wire.dial import ConnectFailed

#: Metadata services that are not on a link-local address: Azure's wire server, Oracle's, Alibaba's,
#: AWS's over IPv6.
METADATA = frozenset(
    map(ip_address, ("168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254"))
)
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
#: The last 240 of IPv4 and "this network" reach nobody, or the host itself.
_THIS_NETWORK = ip_network("0.0.0.0/8")


def check_receiver(address: str) -> None:
    """Raises ``ConnectFailed`` for an address at which no receiver is."""
    reason = why_not(address)
    if reason:
        raise ConnectFailed(f"{address} is {reason}: no receiver is there")


def why_not(address: str) -> str:
    """Empty for an address that may be dialled.

    >>> why_not("10.0.0.5"), why_not("::ffff:169.254.169.254")
    ('', 'link-local')
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return "no address"
    for each in (found, *_carried(found)):
        if each in METADATA:
            return "a metadata service"
        if each.is_link_local:
            return "link-local"
        if each.is_unspecified or (isinstance(each, IPv4Address) and each in _THIS_NETWORK):
            return "unspecified"
        if each.is_multicast:
            return "multicast"
        if isinstance(each, IPv4Address) and each.is_reserved:
            return "reserved"
    return ""


def _carried(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses within an IPv6 one."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour]
    if address.teredo is not None:
        found += address.teredo
    if any(isinstance(net, IPv6Network) and address in net for net in _NAT64):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
