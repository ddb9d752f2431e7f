"""A host of real processes: started at once, kept alive, stopped in order, gone when killed."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.processes import Host, environment, holders, running
from tests.support.until import wait_until

SMALL = ["tests.support.small_host"]


@contextmanager
def small_host(
    tmp_path: Path, child: dict[str, str] | None = None, **settings: object
) -> Iterator[Host]:
    env = environment(tmp_path / "data", **settings) | (child or {})
    with running(SMALL, env, tmp_path / "log") as host:
        yield host


def asked(url: str) -> tuple[str, int]:
    """Role and pid of who answers at ``url``."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=3) as sock:
        sock.sendall(b"who\n")
        role, pid = sock.makefile().readline().split()
    return role, int(pid)


def test_a_host_says_where_it_listens_and_stops_with_nothing_left(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        ready = host.wait_ready()
        data_dir = tmp_path / "data"
        assert ready["store"] == "valkey (embedded)"
        assert ready["pid"] == host.process.pid
        assert asked(ready["base_url"])[0] == "data"
        assert asked(ready["control_url"])[0] == "control"
        assert len(host.family()) == 3  # control, data, valkey
        assert json.loads((data_dir / "run.json").read_text()) == ready
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        for name in ("run.json", "pepper", "operator_token", "lock", "link.sock"):
            assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600, name
        assert host.stop() == 0
        assert holders(data_dir) == set()
        assert not (data_dir / "run.json").exists()
        assert not (data_dir / "link.sock").exists()
        stops = [line for line in host.errors.splitlines() if line.endswith("stops")]
        assert stops == ["data 0 stops", "control -1 stops"]


def test_the_second_start_keeps_secrets_and_what_valkey_held(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        with small_host(tmp_path) as host:
            tokens.append(host.wait_ready()["operator_token"])
            answer = valkey(tmp_path, b"INCR starts")
            assert host.stop() == 0
    assert tokens[0] == tokens[1]
    assert answer == b":2\r\n"


def valkey(tmp_path: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(3)
        sock.connect(str(tmp_path / "data" / "valkey.sock"))
        sock.sendall(command + b"\r\n")
        return sock.recv(4096)


def test_a_killed_child_is_restarted_and_its_port_never_refuses(tmp_path: Path) -> None:
    with small_host(tmp_path, processes=2) as host:
        ready = host.wait_ready()
        pids = set()
        wait_until(lambda: pids.add(asked(ready["base_url"])[1]) or len(pids) == 2)
        os.kill(min(pids), signal.SIGKILL)
        after = set()
        wait_until(lambda: after.add(asked(ready["base_url"])[1]) or len(after - {min(pids)}) == 2)
        assert max(pids) in after
        assert "data process" in host.errors
        assert "SIGKILL" in host.errors


def test_a_killed_valkey_is_restarted_with_what_it_held(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        host.wait_ready()
        assert valkey(tmp_path, b"SET kept 1") == b"+OK\r\n"
        roles = {asked(host_url)[1] for host_url in urls(tmp_path)}
        (pid,) = host.family() - roles
        os.kill(pid, signal.SIGKILL)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return valkey(tmp_path, b"GET kept") == b"$1\r\n1\r\n"
            return False

        wait_until(answers)


def urls(tmp_path: Path) -> list[str]:
    run = json.loads((tmp_path / "data" / "run.json").read_text())
    return [run["base_url"], run["control_url"]]


def test_a_killed_supervisor_leaves_no_process_and_the_next_starts(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        host.wait_ready()
        host.process.kill()
        host.process.wait()
        wait_until(lambda: not holders(tmp_path / "data"), timeout_s=2)
    with small_host(tmp_path) as host:
        assert host.wait_ready()["pid"] == host.process.pid
        assert host.stop() == 0


def test_a_second_host_on_one_folder_is_refused(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        host.wait_ready()
        env = environment(tmp_path / "data")
        with running(["tests.support.small_host"], env, tmp_path / "log2") as second:
            # Not waited for here: the wait for a dying predecessor is 5 s.
            wait_until(lambda: second.process.poll() is not None, timeout_s=8)
            assert second.process.returncode == 1
            assert f"in use by process {host.process.pid}" in second.errors
            host.stop()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for processes in (1, 2):
            with small_host(tmp_path, port=port, processes=processes) as host:
                assert host.process.wait(30) == 1
                assert f"cannot listen on 127.0.0.1:{port}" in host.errors
                assert "--port" in host.errors


def test_a_child_that_ends_at_start_ends_the_host(tmp_path: Path) -> None:
    with small_host(tmp_path, {"CHILD_FAILS": "control"}) as host:
        assert host.process.wait(30) == 1
        assert "control ended at start (exit status 3)" in host.errors
        assert holders(tmp_path / "data") == set()


def test_several_processes_without_a_shared_store_are_refused(tmp_path: Path) -> None:
    with small_host(tmp_path, processes=2, store="memory") as host:
        assert host.process.wait(30) == 1
        assert "TF_REDIS_URL" in host.errors


def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    with small_host(tmp_path, {"CHILD_DRAIN_S": "60"}) as host:
        host.wait_ready()
        host.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            host.process.wait(0.3)
        assert host.stop() == 1
        assert holders(tmp_path / "data") == set()


def test_a_stop_while_starting_is_obeyed(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        wait_until((tmp_path / "data" / "link.sock").exists)
        wait_until(host.family)
        assert host.stop() == 0
        assert holders(tmp_path / "data") == set()


def test_a_long_data_folder_gets_short_private_socket_paths(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    env = environment(deep)
    with running(SMALL, env, tmp_path / "log") as host:
        host.wait_ready()
        assert not list(deep.glob("*.sock"))
        assert host.stop() == 0
