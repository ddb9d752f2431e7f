"""The data folder of a host: its lock, the secrets made once, run.json, and where sockets go.

Whoever holds the lock (a server, or a command that works while none runs) owns everything in the
folder. Not here: what the database, the journals and Valkey keep in it.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

#: sun_path holds 108 bytes with its final zero; the longest name put there is "valkey.sock".
SOCKET_PATH_BYTES_MAX = 107
LOCK_POLL_S = 0.02


class FolderError(Exception):
    """The folder cannot be used; the message says why and what to do."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: where a live server listens. ``pid`` is the supervisor's."""

    base_url: str
    control_url: str
    operator_token: str
    pid: int
    store: str
    version: str


class DataFolder:
    """Paths are absolute; nothing is touched before ``make``."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser().absolute()

    def make(self) -> None:
        """Make the folder, for its owner alone; raises ``FolderError``."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = os.access(self.path, os.R_OK | os.W_OK | os.X_OK)
        except OSError as error:
            raise FolderError(
                f"cannot make the data folder {self.path}: {error.strerror}"
            ) from None
        if not probe:
            raise FolderError(f"the data folder {self.path} cannot be written by this user")

    def lock(self, wait_s: float = 5.0) -> int:
        """A descriptor that holds the folder while any copy of it is open.

        Waits for a predecessor that is dying; raises ``FolderError`` when it does not go.
        """
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EAGAIN, errno.EACCES}:
                    os.close(fd)
                    raise
            else:
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                return fd
            if time.monotonic() >= deadline_s:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise FolderError(
                    f"the data folder {self.path} is in use by process {holder}; stop it, or "
                    "choose another with --data-dir"
                )
            time.sleep(LOCK_POLL_S)

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """The secret kept under ``name``, made the first time. Call with the lock held."""
        path = self.path / name
        try:
            kept = path.read_text().strip()
        except FileNotFoundError:
            kept = ""
        except OSError as error:
            raise FolderError(f"cannot read {path}: {error.strerror}") from None
        if kept:
            return kept
        made = make()
        write_private(path, made.encode() + b"\n")
        return made

    def pepper(self, configured: str | None) -> str:
        """The secret of the key digests: the configured one, else this folder's own."""
        return configured or self.secret("pepper", lambda: secrets.token_hex(32))

    def operator_token(self) -> str:
        """What the admin API asks of an operator."""
        return self.secret("operator_token", lambda: "tfo_" + secrets.token_urlsafe(32))

    def host_id(self) -> str:
        """What this host is called among those that share a database."""
        return self.secret("host_id", lambda: secrets.token_hex(16))

    def statement_key(self) -> str:
        """The seed of the key that signs statements; hosts that sign alike share the file."""
        return self.secret("statement_key", lambda: secrets.token_hex(32))

    def socket_dir(self) -> Path:
        """Where unix sockets go: this folder, or a short private one when its path is too long."""
        if len(os.fsencode(self.path / "valkey.sock")) <= SOCKET_PATH_BYTES_MAX:
            return self.path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        # In /tmp because only a short path fits; never trusted before its owner is checked.
        short = Path(f"/tmp/tf-{os.getuid()}-{digest}")  # noqa: S108 -- see above
        short.mkdir(mode=0o700, exist_ok=True)
        seen = short.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
            raise FolderError(f"{short} is not a private folder of this user; remove it")
        return short

    def leave_socket_dir(self) -> None:
        """Remove the short folder, if there is one and it is empty but for our sockets."""
        short = self.socket_dir()
        for name in ("link.sock", "valkey.sock"):
            (short / name).unlink(missing_ok=True)
        if short != self.path:
            short.rmdir()

    def write_run(self, run: RunFile) -> None:
        write_private(self.path / "run.json", msgspec.json.encode(run) + b"\n")

    def remove_run(self) -> None:
        (self.path / "run.json").unlink(missing_ok=True)

    def read_run(self) -> RunFile | None:
        """What the last server wrote, if its process is alive; None otherwise."""
        try:
            run = msgspec.json.decode((self.path / "run.json").read_bytes(), type=RunFile)
            os.kill(run.pid, 0)
        except (OSError, msgspec.MsgspecError):
            return None
        return run


def write_private(path: Path, data: bytes) -> None:
    """Replace a file whole; readable by its owner alone."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
