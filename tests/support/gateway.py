"""A whole gateway as operators run it: real processes in a folder of the test's own."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

TOKENFACTORY = str(Path(sys.executable).parent / "tokenfactory")
READY_S = 60.0
#: Of the end of a gateway's log, beside the failure of a test.
LOG_SHOWN_CHARS = 6_000
#: What a process says of an error that is its own fault, wherever its outer walls caught it.
OWN_BUG = re.compile(
    r"request [0-9a-f]{32} failed|IllegalMove|background task \S+ died"
    r"|(?:a deadline|a receiver|the handler) failed"
)


class Gateway:
    """``tokenfactory serve`` on free ports. ``log`` is what it wrote to standard error."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        self.data_dir = data_dir
        self.environ = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
        self.environ |= {
            "TF_DATA_DIR": str(data_dir),
            "TF_PORT": "0",
            "TF_CONTROL_PORT": "0",
            "TF_DRAIN_S": "5",
        }
        self.environ |= {f"TF_{key.upper()}": str(value) for key, value in settings.items()}
        self.ready: dict[str, Any] = {}
        self._log_path = data_dir.parent / f"{data_dir.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str) -> "Gateway":
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [TOKENFACTORY, *(command or ("serve",)), "--json"],
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        watchdog = threading.Timer(READY_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        assert line, f"no ready line; it said:\n{self.log}"
        self.ready = json.loads(line)
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def base_url(self) -> str:
        return self.ready["base_url"]

    @property
    def log(self) -> str:
        return self._log_path.read_text() if self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cli(self, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
        """Run a command against this gateway's folder; gives its standard output."""
        done = subprocess.run(
            [TOKENFACTORY, *arguments],
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """What a command would ask of the live server: a command's own start costs more than most
        tests. Raises ``OSError`` where nobody listens.
        """
        address = self.ready["control_url"].removeprefix("http://")
        headers = {
            "authorization": f"Bearer {self.ready['operator_token']}",
            "content-type": "application/json",
        }
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            said = response.read()
        assert response.status < HTTPStatus.BAD_REQUEST, (path, response.status, said)
        return json.loads(said)

    def apply(self, document: dict[str, Any], *arguments: str) -> dict[str, Any]:
        """By the command where there are arguments or no server."""
        if not arguments and self.alive:
            return self.ask("POST", "/admin/v1/apply", {"document": document, "file": "a test"})
        path = self.data_dir.parent / f"{self.data_dir.name}.apply.yaml"
        path.write_text(json.dumps(document))  # JSON is YAML
        return json.loads(self.cli("apply", str(path), "--json", *arguments))

    def records(self) -> list[dict[str, Any]]:
        """By the command where there is no server."""
        if self.alive:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._pages("/admin/v1/usage/records?limit=1000")
        said = self.cli("usage", "--records", "--json")
        return [json.loads(line) for line in said.splitlines()]

    def records_when(self, count: int, within_s: float = 5.0) -> list[dict[str, Any]]:
        """The records, once there are at least ``count`` (a record may take 2 s to be seen)."""
        until = time.monotonic() + within_s
        while True:
            records = self.records()
            if len(records) >= count or time.monotonic() > until:
                return records
            time.sleep(0.05)

    def _pages(self, path: str) -> list[dict[str, Any]]:
        page = self.ask("GET", path)
        found = page["data"]
        while page["next"] is not None:
            page = self.ask("GET", f"{path}&cursor={page['next']}")
            found += page["data"]
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(how)
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"did not stop; it said:\n{self.log}") from None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code


@contextlib.contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[Gateway]:
    """A gateway for the block. What it did there was none of its own bugs."""
    gateway = Gateway(data_dir, **settings).start()
    try:
        yield gateway
    except BaseException as failure:
        failure.add_note(f"the gateway said:\n{gateway.log[-LOG_SHOWN_CHARS:]}")
        raise
    finally:
        gateway.stop()
    assert not OWN_BUG.findall(gateway.log), gateway.log


def processes_of(data_dir: Path) -> list[int]:
    """Every live process that has the folder in its command line or environment."""
    needle = str(data_dir).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if state != "Z" and needle in told:
                found.append(int(entry.name))
    return found


def document(
    *engine_urls: str,
    model: str = "llama",
    upstream: str = "demo-model",
    limits: dict[str, int] | None = None,
) -> dict[str, Any]:
    """A small valid declared file: one pool, one model, one tenant, one project, one key."""
    return {
        "pools": [{"name": "pool", "endpoints": [{"url": url} for url in engine_urls]}],
        "models": [
            {
                "name": model,
                "upstream": upstream,
                "pool": "pool",
                "price": {
                    "currency": "USD",
                    "input": "0.10",
                    "cached_input": "0.05",
                    "output": "0.40",
                },
            }
        ],
        "tenants": [
            {
                "name": "acme",
                "projects": [{"name": "chatbot", "keys": [{"name": "ci", "limits": limits or {}}]}],
            }
        ],
    }
