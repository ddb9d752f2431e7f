"""Commands without a server: they work on the data folder themselves, one at a time."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.datafolder import DataFolder

FILE = """
pools:
  - name: pool
    endpoints: [{url: "http://127.0.0.1:9"}]
models:
  - {name: m, pool: pool, price: {currency: USD, input: "0.10", output: "0.40"}}
tenants:
  - name: acme
    limits: {requests_per_minute: 600}
    projects:
      - name: bot
        keys: [{name: ci, models: [m], expires: 2097-06-30}]
"""
Cli = Callable[..., str]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in os.environ:
        if name.startswith("TF_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TF_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str, code: int = 0) -> str:
        seen = main.run([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert seen == code, err
        assert "Traceback" not in err
        return out if code == 0 else err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE)
    return path


def applied(cli: Cli, file: Path, *more: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(cli("apply", str(file), "--json", *more))
    return result


def test_apply_prints_new_secrets_once(cli: Cli, file: Path) -> None:
    first = applied(cli, file)
    assert first.keys() == {"version", "created", "keys"}
    ((path, secret),) = [(key["path"], key["secret"]) for key in first["keys"]]
    assert path == "acme/bot/ci"
    assert secret.startswith("tf_live_")
    assert first["created"]["models"] == ["m"]
    again = applied(cli, file)
    assert again["keys"] == []
    assert again["version"] == first["version"]


def test_apply_for_people_names_what_was_done(cli: Cli, file: Path) -> None:
    said = cli("apply", str(file))
    assert "created tenants: acme" in said
    assert "(shown this once)" in said


def test_a_wrong_file_names_file_path_value_and_what_was_expected(cli: Cli, file: Path) -> None:
    file.write_text(FILE.replace("requests_per_minute: 600", "requests_per_hour: 600"))
    said = cli("apply", str(file), code=1)
    assert str(file) in said
    assert "tenants[0].limits" in said
    assert "requests_per_hour" in said


def test_prune_lists_what_goes_and_wants_a_yes(cli: Cli, file: Path) -> None:
    applied(cli, file)
    file.write_text(FILE.replace("name: ci", "name: prod"))
    assert "acme/bot/ci" in cli("keys", "list")
    said = cli("apply", str(file), "--prune", code=2)
    assert "key acme/bot/ci" in said
    assert "--yes" in said
    applied(cli, file)
    assert {key["path"] for key in json.loads(cli("keys", "list", "--json"))} == {
        "acme/bot/ci",
        "acme/bot/prod",
    }
    applied(cli, file, "--prune", "--yes")
    assert [key["path"] for key in json.loads(cli("keys", "list", "--json"))] == ["acme/bot/prod"]


def test_prune_with_nothing_to_remove_does_not_ask(cli: Cli, file: Path) -> None:
    applied(cli, file)
    applied(cli, file, "--prune")


def test_keys_are_made_rotated_and_revoked(cli: Cli, file: Path) -> None:
    applied(cli, file)
    made = json.loads(
        cli("keys", "create", "acme/bot/dev", "--models", "m", "--expires", "2097-01-01", "--json")
    )
    rotated = cli("keys", "rotate", "acme/bot/dev").strip()
    assert rotated.startswith("tf_live_")
    assert rotated != made["secret"]
    assert cli("keys", "revoke", "acme/bot/dev") == "revoked acme/bot/dev\n"
    states = {key["path"]: key["state"] for key in json.loads(cli("keys", "list", "--json"))}
    assert states == {"acme/bot/ci": "live", "acme/bot/dev": "revoked"}
    assert "acme/bot/nope" in cli("keys", "revoke", "acme/bot/nope", code=1)
    assert "expected tenant/project/key" in cli("keys", "create", "oops", code=1)


def test_models_and_empty_usage_are_shown(cli: Cli, file: Path) -> None:
    assert "no models" in cli("models", "list")
    applied(cli, file)
    assert [model["name"] for model in json.loads(cli("models", "list", "--json"))] == ["m"]
    assert cli("usage") == "no usage yet\n"
    assert cli("usage", "--records", "--json") == ""
    assert "expected a date" in cli("usage", "--since", "yesterday", code=1)


def test_the_doctor_works_without_a_server(
    cli: Cli, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("requests_per_minute: 600", "tokens_per_minute: 5"))
    applied(cli, file)
    assert main.run(["doctor", "--json", "--wire-upstream-idle-s", "0.1"]) == 1
    found = {(f["check"], f["severity"]): f["subject"] for f in json.loads(capsys.readouterr().out)}
    assert found["limits", "error"] == "tenant acme"
    assert found["endpoints", "error"] == "http://127.0.0.1:9"


def test_a_folder_in_use_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.client.LOCK_WAIT_S", 0.1)
    folder = DataFolder(str(tmp_path / "data"))
    folder.make()
    fd = folder.lock()
    try:
        assert f"in use by process {os.getpid()}" in cli("keys", "list", code=1)
    finally:
        os.close(fd)
    assert "no keys" in cli("keys", "list")


def test_a_database_that_cannot_be_used_is_a_sentence(cli: Cli) -> None:
    said = cli("keys", "list", "--database-url", "mysql://x/y", code=1)
    assert "postgresql://" in said
    said = cli("keys", "list", "--database-url", "postgresql://127.0.0.1:9/x", code=1)
    assert "the database cannot be used" in said


def test_limits_are_set_shown_and_removed_by_name(cli: Cli, file: Path) -> None:
    applied(cli, file)
    cli("limits", "set", "acme/bot/ci", "tokens_per_minute=600", "budget_per_month=25.00")
    cli("limits", "set", "acme/bot", "requests_per_day=9", "--end-user", "--shadow")
    cli("limits", "set", "acme", "tokens_per_minute=5", "--model", "m", "--burst", "7")
    shown = cli("limits", "show")
    assert "budget_per_month" in shown
    assert "each end user" in shown
    assert "burst 7" in shown
    rows = json.loads(cli("limits", "show", "acme/bot/ci", "--json"))
    assert {row["name"]: row["limit"] for row in rows} == {
        "tokens_per_minute": 600,
        "budget_per_month": "25.00",
    }
    cli("limits", "remove", "acme/bot/ci", "tokens_per_minute")
    assert len(json.loads(cli("limits", "show", "acme/bot/ci", "--json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("set", "acme", "tokens_per_minute"), "NAME=VALUE"),
        (("set", "acme", "tokens_per_minute=many"), "whole number"),
        (("set", "acme", "tokens_per_year=5"), "tokens_per_year"),
        (("set", "gone", "tokens_per_minute=5"), "gone"),
        (("remove", "acme", "tokens_per_minute"), "no limit"),
    ],
)
def test_a_limit_that_cannot_be_set_is_one_sentence(
    cli: Cli, file: Path, arguments: tuple[str, ...], named: str
) -> None:
    applied(cli, file)
    wrong_use = "NAME=VALUE" in named or "whole" in named
    assert named in cli("limits", *arguments, code=2 if wrong_use else 1)


def test_explaining_needs_a_server(cli: Cli, file: Path) -> None:
    applied(cli, file)
    assert "no data process" in cli("explain", "acme/bot/ci", "m", code=1)
    assert "no key x" in cli("explain", "x", "m", code=1)
