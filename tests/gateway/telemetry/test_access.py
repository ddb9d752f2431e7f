"""The access line and the process's log lines."""

import json
import logging
import os
import sys

import pytest

from gateway.telemetry.access import PENDING_BYTES_MAX, AccessLine, AccessLog, JsonFormatter


def line(request_id: str, path: str = "/v1/models") -> AccessLine:
    return AccessLine(
        ts=1.0, request_id=request_id, method="GET", path=path, status=200, peer="127.0.0.1"
    )


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_of_one_tick_go_out_in_one_write(pipe):
    reader, writer = pipe
    soon = []
    log = AccessLog(writer, soon.append)
    log.write(line("a"))
    log.write(line("b"))

    assert len(soon) == 1
    soon[0]()
    lines = os.read(reader, 65_536).splitlines()
    assert [json.loads(each)["request_id"] for each in lines] == ["a", "b"]


def test_unread_log_drops_the_oldest_and_counts_them(pipe):
    _, writer = pipe
    log = AccessLog(writer, lambda _: None)
    for number in range(2_000):
        log.write(line(str(number), "/" + "x" * 1_000))
        assert len(log._pending) <= PENDING_BYTES_MAX

    kept = [json.loads(each)["request_id"] for each in bytes(log._pending).splitlines()]
    assert kept == [str(number) for number in range(log.dropped, 2_000)]
    assert 0 < log.dropped < 2_000
    assert len(log._pending) + 1_200 > PENDING_BYTES_MAX


def test_rest_of_a_short_write_is_kept(pipe):
    reader, writer = pipe
    log = AccessLog(writer, lambda _: None)
    for number in range(200):
        log.write(line(str(number), "/" + "x" * 1_000))
    seen = b""
    while log._pending:
        log.flush()
        seen += os.read(reader, 1 << 20)

    assert [json.loads(each)["request_id"] for each in seen.splitlines()] == [
        str(number) for number in range(200)
    ]


def test_log_record_becomes_one_json_object():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "hello %s", ("there",), None)

    said = json.loads(JsonFormatter().format(record))

    assert (said["level"], said["message"]) == ("warning", "hello there")


def failed(*, name: str = "x", message: str = "it failed") -> dict[str, str]:
    try:
        try:
            int("the prompt")
        except ValueError as error:
            raise RuntimeError("a secret") from error
    except RuntimeError:
        record = logging.LogRecord(name, logging.ERROR, "f", 1, message, (), sys.exc_info())
    return json.loads(JsonFormatter().format(record))


def test_a_traceback_says_where_and_of_what_kind_and_quotes_nobody():
    said = failed()["exception"]

    assert [each for each in said.splitlines() if not each.startswith(" ")] == [
        "builtins.ValueError",
        "then",
        "builtins.RuntimeError",
    ]
    assert __file__ in said
    assert "prompt" not in said.replace('int("the prompt")', "")


def test_asyncio_says_what_it_says_without_the_task_that_failed():
    said = failed(name="asyncio", message="Task exception was never retrieved\n<Task 'a secret'>")

    assert said["message"] == "Task exception was never retrieved"
