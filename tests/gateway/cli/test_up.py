"""``serve`` and ``up`` as operators run them: one ready line, commands that follow, a clean end."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.processes import ROOT, environment, holders, running
from tests.support.until import wait_until

MAIN = "gateway.cli.main"
READY = {"event", "base_url", "control_url", "operator_token", "store", "pid"}


def cli(env: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MAIN, *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def demo_usage(env: dict[str, str], requests: int) -> bool:
    rows = json.loads(cli(env, "usage", "--json"))
    return [(row["key"], row["requests"]) for row in rows] == [("demo/first/try", requests)]


def ask(base_url: str, api_key: str, model: str) -> httpx.Response:
    return httpx.post(
        f"{base_url}/chat/completions",
        headers={"authorization": f"Bearer {api_key}"},
        json={"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        trust_env=False,
        timeout=10,
    )


def test_up_gives_a_key_that_works_at_once_and_usage_that_shows_it(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", store="memory")
    for start in (1, 2):
        with running([MAIN, "up", "--json"], env, tmp_path / "log") as host:
            ready = host.wait_ready()
            assert ready.keys() == READY | {"api_key", "model"}
            answer = ask(ready["base_url"], ready["api_key"], ready["model"])
            assert answer.status_code == 200, answer.text
            wait_until(lambda: demo_usage(env, start))  # noqa: B023 -- awaited in this turn
            assert host.stop() == 0
            assert "Traceback" not in host.errors
        assert demo_usage(env, start)  # with the server stopped, too


def test_up_gives_another_key_where_the_first_was_revoked(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", store="memory")
    for _ in range(2):
        with running([MAIN, "up", "--json"], env, tmp_path / "log") as host:
            ready = host.wait_ready()
            assert models(ready["base_url"], ready["api_key"]) == 200
            assert host.stop() == 0
        cli(env, "keys", "revoke", "demo/first/try")


def test_the_line_to_paste_works(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", store="memory")
    with running([MAIN, "up"], env, tmp_path / "log") as host:
        assert host.process.stdout is not None
        lines = iter(host.process.stdout.readline, b"")
        line = next(line for line in lines if line.strip().startswith(b"curl ")).decode()
        done = subprocess.run(
            [*shlex.split(line), "--silent", "--max-time", "10"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("data: {")
        assert done.stdout.rstrip().endswith("data: [DONE]")
        assert host.stop() == 0


def test_up_fronts_the_engine_it_is_given(tmp_path: Path) -> None:
    demo = environment(tmp_path / "engine", store="memory")
    with running([MAIN, "up", "--json"], demo, tmp_path / "log1") as first:
        first.wait_ready()
        port = (tmp_path / "engine" / "demo_port").read_text()
        env = environment(tmp_path / "data", store="memory")
        arguments = [MAIN, "up", "--engine", f"http://127.0.0.1:{port}", "--json"]
        with running(arguments, env, tmp_path / "log2") as host:
            ready = host.wait_ready()
            assert ready["model"] == "demo-model"
            assert ask(ready["base_url"], ready["api_key"], "demo-model").status_code == 200
            assert host.stop() == 0
        assert first.stop() == 0


def test_an_engine_that_is_away_is_a_sentence(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", store="memory")
    arguments = [MAIN, "up", "--engine", "http://127.0.0.1:9"]
    with running(arguments, env, tmp_path / "log") as host:
        assert host.process.wait(40) == 1
        assert "http://127.0.0.1:9 does not answer" in host.errors
        assert "Traceback" not in host.errors


def test_serve_says_one_line_obeys_apply_and_stops_clean(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", processes=2)
    file = tmp_path / "file.yaml"
    file.write_text("tenants: [{name: acme, projects: [{name: bot, keys: [{name: ci}]}]}]")
    with running([MAIN, "serve", "--json"], env, tmp_path / "log") as host:
        ready = host.wait_ready()
        assert ready.keys() == READY
        assert ready["store"] == "valkey (embedded)"
        ((secret,),) = [
            (key["secret"],) for key in json.loads(cli(env, "apply", str(file), "--json"))["keys"]
        ]
        wait_until(lambda: models(ready["base_url"], secret) == 200, timeout_s=1)
        cli(env, "keys", "revoke", "acme/bot/ci")
        wait_until(lambda: models(ready["base_url"], secret) == 401, timeout_s=1)
        assert host.stop() == 0
        assert holders(tmp_path / "data") == set()
        assert "Traceback" not in host.errors
        assert host.process.stdout is not None
        assert host.process.stdout.read() == b""


def models(base_url: str, secret: str) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.get(f"{base_url}/models", headers=headers, trust_env=False).status_code


def test_a_killed_host_leaves_nothing_and_commands_go_on(tmp_path: Path) -> None:
    env = environment(tmp_path / "data")
    with running([MAIN, "serve", "--json"], env, tmp_path / "log") as host:
        host.wait_ready()
        host.process.send_signal(signal.SIGKILL)
        host.process.wait(30)
        wait_until(lambda: not holders(tmp_path / "data"), timeout_s=2)
    assert cli(env, "usage", "--records", "--json") == ""
    with running([MAIN, "serve", "--json"], env, tmp_path / "log") as again:
        again.wait_ready()
        assert again.stop() == 0


def test_serve_without_a_shared_store_is_wrong_use(tmp_path: Path) -> None:
    env = environment(tmp_path / "data", processes=2, store="memory")
    with running([MAIN, "serve"], env, tmp_path / "log") as host:
        assert host.process.wait(30) == 2
        assert "TF_REDIS_URL" in host.errors
