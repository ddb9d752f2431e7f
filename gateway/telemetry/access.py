"""One JSON line a request on standard error, and the process's own log lines in the same shape.

Batched: lines of a few milliseconds go out in one write. Bodies, credentials and query strings are never
in a line. A slow reader of the log must not stop the loop: past 1 MiB of unwritten lines the
oldest are dropped and counted.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

PENDING_BYTES_MAX = 1 << 20
#: Libraries whose every step is of no interest to an operator.
CHATTY = ("alembic", "httpx", "httpcore", "asyncio")


class AccessLine(
    msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag_field="event", tag="request"
):
    """What is said of one request. ``ts`` is Unix seconds; ids are names an operator knows."""

    ts: float
    request_id: str
    method: str
    path: str
    status: int
    peer: str
    key: str = ""
    model: str = ""
    endpoint: str = ""
    attempts: int = 0
    outcome: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: int = -1
    total_ms: int = 0
    trace_id: str = ""


class AccessLog:
    """Writes lines in batches. ``call_soon`` runs a function once, soon; ``fd`` is put in non-blocking use."""

    def __init__(self, fd: int, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._fd = fd
        self._call_soon = call_soon
        self._pending = bytearray()
        self._scheduled = False
        self._encode_into = msgspec.json.Encoder().encode_into
        self.dropped = 0

    def write(self, line: AccessLine) -> None:
        pending = self._pending
        self._encode_into(line, pending, -1)  # at its end
        pending += b"\n"
        if len(pending) > PENDING_BYTES_MAX:
            self._drop_oldest()
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self.flush)

    def _drop_oldest(self) -> None:
        """Whole lines, until the others are few enough."""
        pending = self._pending
        end = pending.find(b"\n", len(pending) - PENDING_BYTES_MAX - 1) + 1
        self.dropped += pending.count(b"\n", 0, end)
        del pending[:end]

    def flush(self) -> None:
        self._scheduled = False
        if not self._pending:
            return
        try:
            written = os.write(self._fd, self._pending)
        except BlockingIOError:
            return
        except OSError:
            self.dropped += 1  # nobody reads the log any more; serving goes on
            self._pending.clear()
            return
        del self._pending[:written]


class JsonFormatter(logging.Formatter):
    """Log records as one JSON object a line; the traceback, if any, without what an error says: its words
    may be a caller's.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)

    def formatException(self, ei: Any) -> str:  # noqa: N802 -- logging's own name
        """Where it happened and of what kind, causes first, as Python prints them."""
        told: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None:
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            told.append("".join(traceback.format_tb(error.__traceback__)) + kind)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nthen\n".join(reversed(told))


def _message(record: logging.LogRecord) -> str:
    """As logged; asyncio's own go on with a task's repr, which quotes what it failed with."""
    message = record.getMessage()
    return message.partition("\n")[0] if record.name == "asyncio" else message


def configure_logging(level: str) -> None:
    """All loggers of this process to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in CHATTY:
        logging.getLogger(library).setLevel(max(root.level, logging.WARNING))
