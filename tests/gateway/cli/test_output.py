"""Tables and JSON lines as people and pipes read them."""

import pytest

from gateway.cli.output import print_json, print_table


def test_a_table_aligns_names_left_and_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"key": "acme/a", "requests": 7, "models": None},
        {"key": "b", "requests": 1200, "models": ["x", "y"]},
    ]
    print_table(rows, ("key", "requests", "models"), "none")
    assert capsys.readouterr().out.splitlines() == [
        "key     requests  models",
        "acme/a         7  -",
        "b           1200  x, y",
    ]


def test_no_rows_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([], ("a",), "no keys")
    assert capsys.readouterr().out == "no keys\n"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "x\ny"})
    assert capsys.readouterr().out == '{"a":"x\\ny"}\n'
