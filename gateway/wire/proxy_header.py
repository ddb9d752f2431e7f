"""The PROXY header that a load balancer may put before a connection's first byte: who the client is.

Versions 1 (a line of text) and 2 (binary). Read only from trusted proxies, and then demanded: a
receiver must be told to expect it and never guess. Pure. Source: HAProxy,
"The PROXY protocol", versions 1 & 2, section 2 (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt).
"""

import ipaddress
import re

from gateway.contract.errors import BadRequestHead

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE_MAX = 107
#: An address takes 36 bytes; the rest may be extensions, which are skipped.
_BLOCK_MAX = 4096
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?"
    rb"|(TCP[46]) ([0-9A-Fa-f:.]{2,39}) [0-9A-Fa-f:.]{2,39} [0-9]{1,5} [0-9]{1,5})\r\n"
)
_LOCAL, _PROXIED = 0x20, 0x21
_ADDRESS_BYTES = {0x11: 4, 0x21: 16}  # TCP over IPv4, over IPv6


def read_proxy(data: bytes) -> tuple[str, int] | None:
    """(client's address or "", bytes taken) of a header at the start of ``data``; None while it is
    not all here. "" where the proxy speaks for itself. Raises ``BadRequestHead`` for anything else.
    """
    start = data[: len(SIGNATURE)]
    if SIGNATURE.startswith(start):
        return _binary(data) if len(start) == len(SIGNATURE) else None
    if b"PROXY "[: len(data)] != data[:6]:
        raise BadRequestHead("a trusted proxy did not begin with a PROXY header")
    if b"\n" not in data[:_LINE_MAX]:
        if len(data) >= _LINE_MAX:
            raise BadRequestHead("the PROXY line is too long")
        return None
    line = _LINE.match(data)
    if line is None:
        raise BadRequestHead("the PROXY line is broken")
    if line[1] is None:
        return "", line.end()
    return _address(line[2].decode(), 4 if line[1] == b"TCP4" else 6), line.end()


def _binary(data: bytes) -> tuple[str, int] | None:
    fixed = len(SIGNATURE) + 4
    if len(data) < fixed:
        return None
    command, family = data[fixed - 4], data[fixed - 3]
    size = int.from_bytes(data[fixed - 2 : fixed], "big")
    if command not in (_LOCAL, _PROXIED) or size > _BLOCK_MAX:
        raise BadRequestHead("the PROXY block is broken")
    if len(data) < fixed + size:
        return None
    length = _ADDRESS_BYTES.get(family)
    if command == _LOCAL or length is None:
        return "", fixed + size
    if size < 2 * length + 4:
        raise BadRequestHead("the PROXY block is broken")
    return str(ipaddress.ip_address(data[fixed : fixed + length])), fixed + size


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadRequestHead("the PROXY line is broken") from None
    if address.version != version:
        raise BadRequestHead("the PROXY line is broken")
    return str(address)
