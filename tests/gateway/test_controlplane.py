"""The control process as a real one: it feeds, counts, survives its own death, and drains."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.link import snapshot_file
from gateway.link.client import LinkClient
from gateway.link.messages import Counters, Hello, Moves, Signals, Version
from gateway.snapshot import Snapshot
from tests.support.processes import Host, environment, holders, running
from tests.support.until import until

DOCUMENT = {
    "pools": [{"name": "pool", "endpoints": [{"url": "http://127.0.0.1:9"}]}],
    "models": [{"name": "m", "pool": "pool"}],
    "tenants": [{"name": "acme", "projects": [{"name": "bot", "keys": [{"name": "ci"}]}]}],
}


class Controlled:
    """A host with the real control process, and its admin API."""

    def __init__(self, host: Host, ready: dict[str, Any]) -> None:
        self.host = host
        self.url = ready["control_url"]
        self.http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {ready['operator_token']}"},
            trust_env=False,
            timeout=10,
        )

    def apply(self, document: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post("/admin/v1/apply", json={"document": document})
        assert answer.status_code == 200, answer.text
        applied: dict[str, Any] = answer.json()
        return applied

    def control_pid(self) -> int:
        (pid,) = [pid for pid in self.host.family() if b"controlplane" in command(pid)]
        return pid


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[Controlled]:
    env = environment(tmp_path / "data", store="memory") | {"CHILD_CONTROL": "gateway.controlplane"}
    with running(["tests.support.small_host"], env, tmp_path / "log") as host:
        made = Controlled(host, host.wait_ready())
        with made.http:
            yield made


class Process:
    """A data process's end of the link."""

    def __init__(self, data_dir: Path, slot: int = 0) -> None:
        self.snapshot = Snapshot()
        self.signals: list[Signals] = []
        self.slot = slot
        self.link = LinkClient(
            str(data_dir / "link.sock"),
            lambda: Hello(slot, os.getpid(), self.snapshot.version),
            {"moves": self._on_moves, "signals": self._on_signals},
        )

    def _on_moves(self, body: bytes) -> None:
        moves = msgspec.msgpack.decode(body, type=Moves)
        if moves.full:
            self.snapshot.adopt(Snapshot())
        self.snapshot.apply(moves.version, moves.moves)
        self.link.send("version", msgspec.msgpack.encode(Version(moves.version)))

    def _on_signals(self, body: bytes) -> None:
        self.signals.append(msgspec.msgpack.decode(body, type=Signals))

    def count(self, requests: float) -> None:
        counters = {"tf_requests_total": {"ok\x1fm": requests}}
        message = Counters(self.slot, os.getpid(), counters, {}, {})
        self.link.send("counters", msgspec.msgpack.encode(message))


@asynccontextmanager
async def joined(process: Process) -> AsyncIterator[None]:
    task = asyncio.create_task(process.link.run())
    try:
        await until(lambda: process.link.connected)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_reaches_a_data_process_at_once(controlled: Controlled) -> None:
    process = Process(controlled.host.data_dir)
    async with joined(process):
        applied = await asyncio.to_thread(controlled.apply, DOCUMENT)
        await until(lambda: process.snapshot.version == applied["version"], timeout_s=1)
        assert [t.name for t in process.snapshot.tenants.values()] == ["acme"]
        (endpoint,) = next(iter(process.snapshot.pools.values())).endpoints
        # Nobody listens there: its second failed probe is told.
        await until(
            lambda: any(
                each.endpoint_id == endpoint.id and each.healthy is False
                for signals in process.signals
                for each in signals.endpoints
            ),
            timeout_s=6,
        )


async def test_a_killed_control_returns_and_nothing_is_missed(controlled: Controlled) -> None:
    process = Process(controlled.host.data_dir)
    async with joined(process):
        applied = await asyncio.to_thread(controlled.apply, DOCUMENT)
        await until(lambda: process.snapshot.version == applied["version"])
        os.kill(controlled.control_pid(), signal.SIGKILL)
        await until(lambda: not process.link.connected)
        more = {"tenants": [{"name": "other"}]}
        # The listening socket is the supervisor's: the request waits in its queue.
        applied = await asyncio.to_thread(controlled.apply, more)
        await until(lambda: process.snapshot.version == applied["version"], timeout_s=5)
    assert {t.name for t in process.snapshot.tenants.values()} == {"acme", "other"}


async def test_metrics_are_sums_without_a_token(controlled: Controlled) -> None:
    process = Process(controlled.host.data_dir)

    def page() -> str:
        return httpx.get(controlled.url + "/metrics", trust_env=False).text

    async with joined(process):
        process.count(3)
        await until(lambda: 'tf_requests_total{model="m",outcome="ok"} 3.0' in page())
        assert "tf_data_processes 1.0" in page()
    assert "tf_ledger_lag_seconds 0.0" in page()


def test_what_was_applied_is_kept_as_a_file(controlled: Controlled) -> None:
    applied = controlled.apply(DOCUMENT)
    assert controlled.host.stop() == 0
    kept = snapshot_file.read(controlled.host.data_dir / "snapshot")
    assert kept is not None
    version, moves = kept
    assert version == applied["version"]
    assert sorted(move.kind for move in moves) == [
        "key", "model", "platform", "pool", "project", "tenant",
    ]  # fmt: skip
    assert "Traceback" not in controlled.host.errors


def test_health_is_open_and_admin_is_not(controlled: Controlled) -> None:
    with httpx.Client(base_url=controlled.url, trust_env=False) as stranger:
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/readyz").json()["ready"] is True
        for path in ("/admin/v1/keys", "/admin/v1/nothing"):
            assert stranger.get(path).status_code == 401


def test_the_doctor_examines_a_live_host(controlled: Controlled) -> None:
    controlled.apply(DOCUMENT)
    answer = controlled.http.get("/admin/v1/doctor")
    assert answer.status_code == 200
    found = {(each["check"], each["subject"]) for each in answer.json()["data"]}
    assert ("prices", "model m") in found
    assert ("endpoints", "http://127.0.0.1:9") in found


def test_another_pepper_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for pepper, code in (("a" * 32, None), ("b" * 32, 1)):
        env = environment(tmp_path / "data", store="memory", pepper=pepper)
        env["CHILD_CONTROL"] = "gateway.controlplane"
        with running(["tests.support.small_host"], env, tmp_path / "log") as host:
            if code is None:
                host.wait_ready()
                assert host.stop() == 0
            else:
                assert host.process.wait(30) == code
                assert "the pepper differs" in host.errors
                assert "Traceback" not in host.errors
    assert holders(tmp_path / "data") == set()
