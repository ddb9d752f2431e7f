"""The listening sockets of a host: opened once by the supervisor, kept, and handed down.

A restarted child finds in its socket's queue the connections that came meanwhile. Each data process
has its own socket on the one port (SO_REUSEPORT): the kernel spreads connections, and no two
processes race for one. Not here: accepting.
"""

import socket
from pathlib import Path

#: As deep as Linux allows by default (net.core.somaxconn since 5.4).
BACKLOG = 4096


class PortTaken(Exception):
    """An address cannot be listened on; the message says which and why."""


def listen_shared(host: str, port: int, count: int, setting: str) -> list[socket.socket]:
    """``count`` sockets on one address; port 0 = a free one. Raises ``PortTaken``.

    The first bind is exclusive, so that another server's port is seen as taken even where it, too,
    would share. ``setting`` is named in the error.
    """
    family, address = _resolve(host, port, setting)
    if count == 1:
        return [_listen(family, address, setting, shared=False)]
    if port:
        _bind(family, address, setting, shared=False).close()
    sockets = [_listen(family, address, setting, shared=True)]
    address = (address[0], sockets[0].getsockname()[1], *address[2:])
    sockets += [_listen(family, address, setting, shared=True) for _ in range(count - 1)]
    return sockets


def listen_unix(path: Path) -> socket.socket:
    """A private unix socket; one left by a dead predecessor is replaced (the lock is held)."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def url_of(sock: socket.socket) -> str:
    """``http://host:port`` a client of this host can use; a wildcard address becomes loopback."""
    host, port = sock.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(host: str, port: int, setting: str) -> tuple[int, tuple[str | int, ...]]:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        flag = setting.replace("port", "host")
        raise PortTaken(f"cannot listen on {host}: {error.strerror}; see --{flag}") from None
    return family, (str(address[0]), *(int(each) for each in address[1:]))


def _bind(
    family: int, address: tuple[str | int, ...], setting: str, *, shared: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise PortTaken(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose another with "
            f"--{setting} (0 = a free one)"
        ) from None
    return sock


def _listen(
    family: int, address: tuple[str | int, ...], setting: str, *, shared: bool
) -> socket.socket:
    sock = _bind(family, address, setting, shared=shared)
    try:
        sock.listen(BACKLOG)
    except OSError as error:  # two binders with SO_REUSEADDR: the second is refused here
        sock.close()
        raise PortTaken(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose another with "
            f"--{setting} (0 = a free one)"
        ) from None
    return sock
