"""The one place where errors become answers, and where an engine's error becomes one of ours.

An error that this house knows carries its status, type and code (``contract.errors``); those of the
strangers below (``quotas``, ``routing``) are translated here; anything else is our own bug: 500, and
only the request's id is told. Not here: who raises what, and when to try again elsewhere.
"""

import math
import re

import msgspec

from gateway.contract.errors import (
    ContextLengthExceeded,
    ContractError,
    EngineBusy,
    EngineRefused,
    InternalError,
    LimitExceeded,
    NoCapacity,
    QuotaSpent,
    RequestTooLarge,
    StoreAway,
    UpstreamError,
    UpstreamMisconfigured,
    error_body,
)
from gateway.refusals import Refused
from quotas.errors import ReservationRefused, StoreUnavailable
from routing.errors import NoEndpoint

#: The caller's clients wait up to this long when told so; above it they are told not to retry.
RETRY_SOON_MS = 60_000
MESSAGE_CHARS_MAX = 2000
#: Engine text beyond this is not even looked at.
SCRUBBED_CHARS_MAX = 8000

CONTEXT = re.compile(
    r"maximum context length|maximum model length|context window|exceeds? the (?:model'?s )?context",
    re.IGNORECASE,
)
#: vLLM names every model it serves: "Valid aliases: a, b.".
ALIASES = re.compile(r"(?<!\s)\s*Valid aliases:[^\n]*", re.IGNORECASE)
TRACEBACK = re.compile(r"Traceback \(most recent call last\).*", re.DOTALL)
URL = re.compile(r"\b[a-z][a-z0-9+]{1,15}://\S+")
#: An IPv4 address, or a name with a port.
ADDRESS = re.compile(
    r"(?<![\w.-])(?:\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?|(?:[\w-]+(?:\.[\w-]+)+|localhost):\d{2,5})(?![\w-])"
)
#: Two or more path parts, on the engine's disk; the API's own paths may be named.
PATH = re.compile(r"(?<![\w./-])(?!/v\d+/)~?(?:/[\w.@+~-]+){2,}/?")
#: pydantic's location of a field, as FastAPI writes it.
BODY_PREFIX = "body."
CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Answer(msgspec.Struct, frozen=True):
    """A whole refusal: ``headers`` without content-type and request id, ``body`` in OpenAI's shape."""

    status: int
    code: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def answer(error: Exception, request_id: str) -> Answer:
    """What the client gets for an error. Never raises."""
    known = translate(error, request_id)
    body = error_body(known.message, known.type, known.param, known.code)
    return Answer(
        known.status, known.code or "", known.headers + retry_headers(known.retry_after_ms), body
    )


def translate(error: Exception, request_id: str) -> ContractError:
    """The contract's word for any error."""
    if isinstance(error, ContractError):
        return error
    if isinstance(error, (StoreUnavailable, ReservationRefused)):
        return StoreAway()
    if isinstance(error, NoEndpoint):
        return NoCapacity(error.retry_after_s)
    return InternalError(request_id)


def refusal_of(
    refused: Refused, used: int, currency: str, headers: tuple[tuple[bytes, bytes], ...]
) -> ContractError:
    """A limit's refusal in the contract's words. 429 is the caller's limit; 503 is ours to mend."""
    limit = refused.limit
    said = limit.per_minute or limit.capacity
    match refused.reason:
        case "unbuilt":
            return StoreAway("balances are being counted")
        case "skewed":
            return StoreAway("the clocks of this service disagree")
        case "never":
            return RequestTooLarge(
                limit.scope_name, limit.dimension, limit.capacity, refused.requested, currency
            )
        case "balance_spent":
            return QuotaSpent(
                limit.scope_name,
                said,
                used,
                refused.remaining,
                refused.requested,
                limit.window,
                currency,
                headers,
            )
        case _:
            return LimitExceeded(
                limit.scope_name,
                limit.dimension,
                said,
                used,
                refused.requested,
                refused.retry_after_ms,
                headers,
                limit.window,
                currency,
            )


def retry_headers(wait_ms: int | None) -> tuple[tuple[bytes, bytes], ...]:
    """Both spellings of when to try again; a wait above a minute says not to retry by itself."""
    if wait_ms is None:
        return ()
    headers = (
        (b"retry-after", b"%d" % math.ceil(wait_ms / 1000)),
        (b"retry-after-ms", b"%d" % wait_ms),
    )
    if wait_ms > RETRY_SOON_MS:
        return (*headers, (b"x-should-retry", b"false"))
    return headers


# -- what engines say --------------------------------------------------------------------------


def normalise_engine_error(
    status: int, body: bytes, upstream_model: str, public_model: str
) -> ContractError:
    """An engine's error in OpenAI's shape, with nothing of the engine's house in it.

    ``body`` may be anything: vLLM's object, a bare string under ``error``, HTML, nothing.
    """
    if status in (429, 503):
        return EngineBusy()
    if status in (401, 403, 404):
        return UpstreamMisconfigured()
    if not 400 <= status < 500:  # noqa: PLR2004 -- the class of client errors
        return UpstreamError()
    message, param, code = _said(body)
    message = scrub(message, upstream_model, public_model)
    if CONTEXT.search(message):
        return ContextLengthExceeded(message)
    if not message:
        message = "The model refused the request."
    return EngineRefused(status, message, param, code)


def scrub(text: str, upstream_model: str, public_model: str) -> str:
    """Engine text that a caller may read: public names, no paths, no addresses, no aliases."""
    text = ALIASES.sub("", TRACEBACK.sub("", text[:SCRUBBED_CHARS_MAX]))
    if upstream_model and upstream_model != public_model:
        whole = rf"(?<![\w/-]){re.escape(upstream_model)}(?![\w/-])"
        text = re.sub(whole, lambda _: public_model, text)
    text = ADDRESS.sub("[address]", PATH.sub("[path]", URL.sub("[url]", text)))
    return text.strip()[:MESSAGE_CHARS_MAX]


def _said(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, param and code of an engine's error body; empty where there are none."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None, None
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message", error.get("detail"))
    param = error.get("param")
    code = error.get("code")
    return (
        message if isinstance(message, str) else "",
        _clean_param(param) if isinstance(param, str) else None,
        _clean_code(code),
    )


def _clean_code(code: object) -> str | None:
    """An int as a string; what is no short word is not told."""
    if isinstance(code, bool) or not isinstance(code, (str, int)):
        return None
    return str(code) if CODE.fullmatch(str(code)) else None


def _clean_param(param: str) -> str | None:
    """``body.messages`` is ``messages``; what is not a path of names is not told."""
    param = param.removeprefix(BODY_PREFIX)
    return param if re.fullmatch(r"[\w.\[\]-]{1,128}", param) else None
