"""Hostile bodies against a whole gateway: refused, quickly, and no engine hears of them."""

import http.client
import json
import os
import time
from pathlib import Path

import pytest

from gateway.contract.envelope import scan
from gateway.contract.errors import InvalidBody
from tests.support.gateway import document, processes_of, running
from tests.support.hostile import LARGE, hostile
from tests.support.recording import recording_engine

CHAT = "/v1/chat/completions"


def cpu_s(pids):
    """What the gateway's processes have used: a second of theirs, however busy the machine is."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(180)
def test_hostile_bodies_are_refused_quickly_and_reach_no_engine(tmp_path):
    bodies = list(hostile(b"demo-model"))
    assert len(bodies) >= 300
    with recording_engine() as engine, running(tmp_path / "data", access_log="false") as gateway:
        applied = gateway.apply(document(engine.url, model="demo-model", upstream="demo-model"))
        headers = {"authorization": f"Bearer {applied['keys'][0]['secret']}"}
        port = int(gateway.base_url.split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        odd: list[tuple[str, int, str]] = []
        slow: dict[str, float] = {}
        pids = processes_of(tmp_path / "data")
        for name, body in bodies:
            before_s = cpu_s(pids)
            connection.request("POST", CHAT, body, headers)
            answer = connection.getresponse()
            error = json.loads(answer.read())["error"]
            took_s = cpu_s(pids) - before_s
            if answer.status != 400 or error["type"] != "invalid_request_error":
                odd.append((name, answer.status, str(error)))
            if took_s > 1:
                slow[name] = took_s
        connection.close()

        assert not odd
        assert not slow
        assert all(len(body) < 1000 for body in engine.bodies())  # probes, and nothing of ours
        assert gateway.records() == []
        assert "Traceback" not in gateway.log


@pytest.mark.parametrize("name", LARGE)
def test_no_step_over_a_hostile_body_holds_the_loop(name):
    """The longest step between two turns of the loop, in CPU time, the best of three."""
    assert min(_longest_step_s(LARGE[name]) for _ in range(3)) < 0.02


def _longest_step_s(body):
    looked, longest = iter(scan(body)), 0.0
    while True:
        before = time.thread_time()
        try:
            done = next(looked, "done") == "done"
        except InvalidBody:
            done = True
        longest = max(longest, time.thread_time() - before)
        if done:
            return longest
