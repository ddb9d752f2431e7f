"""Listening sockets: shared among our processes, never with another server."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.sockets import PortTaken, listen_shared, listen_unix, url_of


def test_several_sockets_share_one_free_port() -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(s) for s in listen_shared("127.0.0.1", 0, 3, "port")]
        assert len({s.getsockname() for s in sockets}) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_in_use_is_taken_even_where_its_owner_would_share(count: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port}.*--port"):
            listen_shared("127.0.0.1", port, count, "port")


def test_a_name_that_is_no_address_is_named() -> None:
    with pytest.raises(PortTaken, match=r"cannot listen on nowhere\.invalid.*--host"):
        listen_shared("nowhere.invalid", 0, 1, "port")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
    ],
)
def test_a_url_can_be_used_from_this_host(host: str, shown: str) -> None:
    (sock,) = listen_shared(host, 0, 1, "port")
    with sock:
        assert url_of(sock) == f"{shown}{sock.getsockname()[1]}"


def test_a_unix_socket_replaces_one_left_behind(tmp_path: Path) -> None:
    for _ in range(2):
        with listen_unix(tmp_path / "l.sock"):
            assert (tmp_path / "l.sock").stat().st_mode & 0o777 == 0o600
