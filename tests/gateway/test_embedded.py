"""Which store is chosen, and a Valkey of our own that ends with its parent."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.embedded import StoreRefused, choose_store, start_valkey
from gateway.settings import Settings
from tests.support.until import wait_until


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    return path


def test_a_configured_redis_comes_first(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://r:6379")
    assert choose_store(settings, tmp_path).url == "redis://r:6379"
    assert choose_store(Settings(redis_url="redis://r", store="memory"), tmp_path).url is None


def test_the_wheels_valkey_is_ours_without_any_on_path(bare_path: Path, tmp_path: Path) -> None:
    chosen = choose_store(Settings(), tmp_path)
    assert chosen.name == "valkey (embedded)"
    assert chosen.url == f"unix://{tmp_path}/valkey.sock"
    assert chosen.binary is not None
    assert chosen.binary.endswith("valkey-server")


@pytest.mark.parametrize(("version", "taken"), [("7.2.4", True), ("6.2.1", False)])
def test_a_server_on_path_is_taken_if_it_is_new_enough(
    bare_path: Path, tmp_path: Path, version: str, taken: bool
) -> None:
    server = bare_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    server.chmod(0o755)
    chosen = choose_store(Settings(), tmp_path)
    assert (chosen.binary == str(server)) is taken
    assert chosen.name == ("redis (embedded)" if taken else "valkey (embedded)")


def test_no_store_at_all_is_memory_unless_one_was_asked_for(
    bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert choose_store(Settings(), tmp_path).name == "memory"
    for settings in (Settings(store="redis"), Settings(processes=2)):
        with pytest.raises(StoreRefused, match="TF_REDIS_URL"):
            choose_store(settings, tmp_path)


def test_valkey_ends_with_its_parent(tmp_path: Path) -> None:
    chosen = choose_store(Settings(), tmp_path)
    code = (
        "import os, sys, time; from pathlib import Path;"
        "from gateway.embedded import start_valkey;"
        f"p = start_valkey({chosen.binary!r}, Path({str(tmp_path)!r}), Path({str(tmp_path)!r}), 2);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until((tmp_path / "valkey.sock").exists)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: gone(pid))


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_valkey_listens_on_its_private_socket_alone(tmp_path: Path) -> None:
    chosen = choose_store(Settings(), tmp_path)
    assert chosen.binary is not None
    with (tmp_path / "lock").open("w") as lock:
        process = start_valkey(chosen.binary, tmp_path, tmp_path, lock.fileno())
    path = tmp_path / "valkey.sock"
    try:
        wait_until(path.exists)
        assert path.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"CONFIG GET port\r\n")
            assert b"\r\n0\r\n" in sock.recv(4096)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
