"""The command line's outer wall: quick help, settings everywhere, one sentence for each failure."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gateway.cli import main
from gateway.cli.output import CommandFailed

HEAVY = "httpx, sqlalchemy, starlette, uvicorn, pydantic, alembic, rich, asyncio"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TF_"):
            monkeypatch.delenv(name)


def test_help_lists_every_command_and_imports_little() -> None:
    code = (
        "import sys; from gateway.cli import main; main.run(['--help']);"
        f"print([m for m in '{HEAVY}'.split(', ') if m in sys.modules])"
    )
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_s = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    assert done.stdout.endswith("[]\n")
    assert all(f"  {name} " in done.stdout for name in main.COMMANDS)
    assert took_s < 1.0  # of the processor; 0.1 s on an idle machine


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert "Usage: tokenfactory" in capsys.readouterr().out


def test_settings_are_flags_before_and_after_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_HOST", "::1")
    assert main.run(["--port", "1", "config", "show", "--json", "--control-port", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["port"] == {"value": "1", "origin": "--port"}
    assert shown["control_port"] == {"value": "2", "origin": "--control-port"}
    assert shown["host"] == {"value": "::1", "origin": "TF_HOST"}
    assert shown["drain_s"]["origin"] == "default"


def test_config_show_is_a_table_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config", "show", "--pepper", "s3cret"]) == 0
    out = capsys.readouterr().out
    assert "s3cret" not in out
    assert "(set)" in out


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"version"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["version", "--nope"], "No such option '--nope'"),
        (["version", "--port", "x"], "--port='x': expected an integer from 0 to 65535"),
        (["usage", "--by", "colour"], "'colour' is not one of"),
        (["keys", "create"], "Missing argument 'PATH'"),
        (["apply", "/nowhere.yaml"], "cannot read /nowhere.yaml: No such file"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_yaml_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.yaml").write_text("a: 1\nb: [\n")
    assert main.run(["apply", str(tmp_path / "f.yaml")]) == 1
    assert "f.yaml, line 3: not YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CommandFailed("no such key; see tokenfactory keys list"), 1, "no such key"),
        (CommandFailed("add --yes", 2), 2, "add --yes"),
        (RuntimeError("boom"), 1, "internal error (RuntimeError: boom)"),
        (click.Abort(), 1, "stopped"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_no_failure_is_a_traceback(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main.root, "main", fail)
    assert main.run(["version"]) == code
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err
