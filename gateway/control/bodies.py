"""Requests of the admin API read, and answers written: JSON in and out, faults in one sentence.

Not here: what any route does (``gateway.control.app``, ``gateway.control.money``).
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from json import JSONDecodeError
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

BODY_BYTES_MAX = 16 << 20


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def read_body(request: Request) -> bytes:
    parts = bytearray()
    async for piece in request.stream():
        parts += piece
        if len(parts) > BODY_BYTES_MAX:
            raise HTTPException(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    return bytes(parts)


def typed(kind: type[Any], raw: bytes) -> Any:
    try:
        return kind.model_validate_json(raw)
    except (ValidationError, JSONDecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, _first_fault(error)) from None


def typed_values(kind: type[Any], values: Mapping[str, object]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HTTPException(400, _first_fault(error)) from None


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "the body is not JSON"
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(step) for step in first["loc"])
    return f"{path}: {first['msg']}" if path else first["msg"]


def number(text: str, name: str, low: int, high: int) -> int:
    if not text.isdigit() or not low <= int(text) <= high:
        raise HTTPException(400, f"{name}: {text[:40]!r}: expected a number from {low} to {high}")
    return int(text)


def since_ms(request: Request) -> int:
    text = request.query_params.get("since")
    return 0 if text is None else moment_ms(text, "since")


def expires_s(text: str) -> int:
    """A date is its last second, in UTC."""
    moment = moment_ms(text, "expires") // 1000
    return moment + 86_399 if len(text) == len("2027-06-30") else moment


def end_ms(text: str, name: str) -> int:
    """The end of a day (UTC) where a date is given, else the moment."""
    moment = moment_ms(text, name)
    return moment + 86_400_000 if len(text) == len("2027-06-30") else moment


def moment_ms(text: str, name: str) -> int:
    """``parse_moment`` for a handler."""
    try:
        return parse_moment(text, name)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def parse_moment(text: str, name: str) -> int:
    """Unix ms of a date (its first moment) or a time; without a zone it is UTC. Raises
    ``ValueError``.
    """
    try:
        try:
            parsed = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        except ValueError:
            parsed = datetime.fromisoformat(text)
            parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return int(parsed.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name}: {text[:40]!r}: expected a date such as 2027-06-30, or a time"
        ) from None
