"""The only code that connects to an address named by a pool or a publisher.

Policy, if any, is checked on the address that is dialled, not on the name. No proxies, no redirects,
nothing read from the environment.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

#: Anything else would reach the request line or be dropped silently by the URL parser.
VISIBLE = re.compile(r"[^\x00-\x20\x7f]+")
ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)


class Address(msgspec.Struct, frozen=True):
    """Where an endpoint is. ``prefix`` is a path before /v1, without a trailing slash."""

    host: str
    port: int
    tls: bool
    prefix: str
    host_header: bytes


class ConnectFailed(Exception):
    """No connection."""

    def __init__(self, reason: str, *, timeout: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.timeout = timeout


def parse_endpoint(url: str) -> Address:
    """``http(s)://host[:port][/prefix]``; raises ``ValueError`` saying what is wrong."""
    if not VISIBLE.fullmatch(url):
        raise ValueError("endpoint url: expected no spaces and no control characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("endpoint url: expected http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("endpoint url: credentials belong in api_key_env or api_key_file")
    if "?" in url or "#" in url:
        raise ValueError("endpoint url: expected no query and no fragment")
    if not parts.hostname:
        raise ValueError("endpoint url: expected a host")
    if not parts.path.isascii():
        raise ValueError("endpoint url: expected a path in ASCII, percent-encoded")
    tls = parts.scheme == "https"
    port = (443 if tls else 80) if parts.port is None else parts.port
    if port == 0:
        raise ValueError("endpoint url: expected a port of 1 to 65535")
    host = parts.hostname
    shown = f"[{host}]" if ":" in host else host
    default = port == (443 if tls else 80)
    header = shown if default else f"{shown}:{port}"
    return Address(host, port, tls, parts.path.rstrip("/"), header.encode("idna"))


async def dial(
    address: Address,
    factory: Callable[[], ProtocolT],
    *,
    connect_timeout_s: float,
    ca_file: str | None = None,
    policy: Callable[[str], None] | None = None,
) -> ProtocolT:
    """A connected protocol. ``policy(ip)`` raises ``ConnectFailed`` to refuse an address.

    Raises ``ConnectFailed``; TLS handshakes count towards the timeout.
    """
    try:
        async with asyncio.timeout(connect_timeout_s):
            hosts = [address.host] if policy is None else await _allowed(address, policy)
            context = await _tls(ca_file) if address.tls else None
            transport, protocol = await _connect(address, hosts, factory, context)
    except TimeoutError:
        raise ConnectFailed("the connect timed out", timeout=True) from None
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise ConnectFailed(f"cannot connect: {error}") from None
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return protocol


async def _connect(
    address: Address,
    hosts: list[str],
    factory: Callable[[], ProtocolT],
    context: ssl.SSLContext | None,
) -> tuple[asyncio.Transport, ProtocolT]:
    """To the first of the hosts that takes the connection."""
    loop = asyncio.get_running_loop()
    name = address.host if address.tls else None
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return await loop.create_connection(
                factory, host, address.port, ssl=context, server_hostname=name
            )
    return await loop.create_connection(
        factory, hosts[-1], address.port, ssl=context, server_hostname=name
    )


async def _allowed(address: Address, policy: Callable[[str], None]) -> list[str]:
    """Every address of the name, each looked at: none is resolved again afterwards."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(each[4][0]) for each in found))
    for host in hosts:
        policy(host)
    return hosts


#: By ca_file, with its time of change; made again when the file was replaced.
_contexts: dict[str | None, tuple[int, ssl.SSLContext]] = {}


async def _tls(ca_file: str | None) -> ssl.SSLContext:
    """Verified, as strict as the interpreter's default; ``ca_file`` replaces the system's roots.

    Made once, in a thread: reading the roots takes milliseconds that the loop does not have.
    """
    changed_ns = 0 if ca_file is None else Path(ca_file).stat().st_mtime_ns  # noqa: ASYNC240 -- one stat
    known = _contexts.get(ca_file)
    if known is None or known[0] != changed_ns:
        known = changed_ns, await asyncio.to_thread(_context, ca_file)
        _contexts[ca_file] = known
    return known[1]


def _context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
