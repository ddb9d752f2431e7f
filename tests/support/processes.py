"""Hosts as real processes: start one, read its ready line, see what is left of it in /proc."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.until import wait_until

ROOT = Path(__file__).parents[2]


def environment(data_dir: Path, **settings: object) -> dict[str, str]:
    """This process's environment with free ports, a data folder and ``TF_`` settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    given = {"DATA_DIR": data_dir, "PORT": 0, "CONTROL_PORT": 0, "LOG_LEVEL": "warning", **settings}
    return kept | {f"TF_{name.upper()}": str(value) for name, value in given.items()}


class Host:
    """A started host. ``ready`` is its ready line; ``errors`` what it wrote on standard error."""

    def __init__(self, arguments: list[str], env: dict[str, str], log: Path) -> None:
        self.data_dir = Path(env["TF_DATA_DIR"])
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                cwd=ROOT,
            )

    @property
    def errors(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait(10)}: {self.errors}"
        ready: dict[str, Any] = json.loads(line)
        return ready

    def family(self) -> set[int]:
        """Every process that works in this host's folder, but the supervisor."""
        return holders(self.data_dir) - {self.process.pid}

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextmanager
def running(arguments: list[str], env: dict[str, str], log: Path) -> Iterator[Host]:
    """A host that leaves no process, whatever the test did to it."""
    host = Host(arguments, env, log)
    try:
        yield host
    finally:
        if host.process.poll() is None:
            host.process.kill()
            host.process.wait(10)
        assert host.process.stdout is not None
        host.process.stdout.close()
        wait_until(lambda: not holders(host.data_dir))


def holders(data_dir: Path) -> set[int]:
    """Pids that have the folder's lock file open: the supervisor, its children, Valkey."""
    lock = str(data_dir.absolute() / "lock")
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if any(str(fd.readlink()) == lock for fd in (entry / "fd").iterdir()):
                found.add(int(entry.name))
        except OSError:
            continue
    return found
