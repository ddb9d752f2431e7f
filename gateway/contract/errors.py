"""Every way a request can be refused, as values: status, OpenAI's type and code, and a message.

Raised by contract, wire and inference; carried to bytes by ``error_body`` (whole answers) and
``error_event`` (a stream's last event). No prompt text, key, address or upstream name ever enters a
message: what a caller may read is written here. Not here: headers and the errors of other packages
(``gateway.errors``). Shape: https://platform.openai.com/docs/guides/error-codes.
"""

from typing import ClassVar

import msgspec

INVALID_REQUEST = "invalid_request_error"
UNAVAILABLE = "service_unavailable_error"
SERVER = "server_error"


class ContractError(Exception):
    """Base. ``status`` 400..599; ``code`` None where OpenAI has none; ``param`` a JSON path.

    ``retry_after_ms``: when another try may do better; None = not said. ``headers``: extra pairs.
    """

    status: int = 500
    type: ClassVar[str] = SERVER
    code: str | None = None
    param: str | None = None
    retry_after_ms: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# -- the caller's fault ------------------------------------------------------------------------


class InvalidBody(ContractError):
    """The body is not what the operation reads; ``param`` is the JSON path, None for the whole."""

    status = 400
    type = INVALID_REQUEST
    code = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BodyTooLarge(ContractError):
    """``limit``: bytes."""

    status = 413
    type = INVALID_REQUEST
    code = "request_body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes.")


class HeadTooLarge(ContractError):
    """Too many header fields, or too many bytes of them."""

    status = 431
    type = INVALID_REQUEST
    code = "request_headers_too_large"

    def __init__(self, message: str = "The request's headers are too large.") -> None:
        super().__init__(message)


class UriTooLong(ContractError):
    status = 414
    type = INVALID_REQUEST
    code = "request_uri_too_long"

    def __init__(self, message: str = "The request's URI is too long.") -> None:
        super().__init__(message)


class BadRequestHead(ContractError):
    """The head is not HTTP/1.1 as it must be. ``reason``: a fixed phrase, never the caller's bytes."""

    status = 400
    type = INVALID_REQUEST
    code = "bad_request"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Bad request: {reason}.")
        self.reason = reason


class ExpectationFailed(ContractError):
    """``Expect`` asks for something else than ``100-continue``."""

    status = 417
    type = INVALID_REQUEST
    code = "expectation_failed"

    def __init__(self) -> None:
        super().__init__("Only 'Expect: 100-continue' can be met.")


class RequestTimeout(ContractError):
    """The head or the body did not come in time."""

    status = 408
    type = INVALID_REQUEST
    code = "request_timeout"

    def __init__(self, message: str = "The request did not arrive in time.") -> None:
        super().__init__(message)


class InvalidKey(ContractError):
    """No key, a wrong one, an expired or a revoked one: all the same to the caller."""

    status = 401
    type = INVALID_REQUEST
    code = "invalid_api_key"
    headers = ((b"www-authenticate", b"Bearer"),)

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided.")


class KeyRevoked(ContractError):
    """The key was revoked or expired while its request ran."""

    status = 401
    type = INVALID_REQUEST
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("The API key is no longer valid.")


class ModelNotFound(ContractError):
    """No such model, or not for this key: the same bytes."""

    status = 404
    type = INVALID_REQUEST
    code = "model_not_found"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` does not exist or you do not have access to it.")


class IdempotencyKeyUsed(ContractError):
    """The key came with another request that runs, or ended within a day: nothing is made twice."""

    status = 409
    type = INVALID_REQUEST
    code = "idempotency_key_used"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"The Idempotency-Key belongs to request {request_id}, which runs or ended within 24 "
            "hours. Answers are not kept: use a new key to ask again."
        )
        self.headers = (
            (b"x-tf-first-request-id", request_id.encode()),
            (b"x-should-retry", b"false"),
        )


class UnknownRoute(ContractError):
    status = 404
    type = INVALID_REQUEST
    code = "unknown_url"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown request URL: {method} {path}.")


class MethodNotAllowed(ContractError):
    """``allow``: the methods the path has, comma-separated."""

    status = 405
    type = INVALID_REQUEST
    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"Method {method} is not allowed here; use {allow}.")
        self.headers = ((b"allow", allow.encode()),)


class ContextLengthExceeded(ContractError):
    status = 400
    type = INVALID_REQUEST
    code = "context_length_exceeded"
    param = "messages"

    def __init__(self, message: str) -> None:
        super().__init__(message)


#: What a limit's window is called after its dimension.
_WINDOWS = {
    "minute": " per minute",
    "day": " per day",
    "week": " per week",
    "month": " per month",
    "lifetime": " in all",
    "now": "",
}
_DIMENSIONS = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "concurrency": "concurrent requests",
    "money": "spending",
}
_MICRO = 1_000_000


class RequestTooLarge(ContractError):
    """More than a limit holds even when idle: waiting does not help. Units of ``dimension``."""

    status = 400
    type = INVALID_REQUEST
    code = "request_too_large"

    def __init__(
        self, scope_name: str, dimension: str, capacity: int, requested: int, currency: str = ""
    ) -> None:
        what = _DIMENSIONS.get(dimension, dimension)
        super().__init__(
            f"The request needs {_units(requested, dimension, currency)} "
            f"{'of spending' if dimension == 'money' else what}, more than {scope_name} can ever "
            f"grant at once ({_units(capacity, dimension, currency)}). "
            "Lower max_tokens or shorten the prompt."
        )
        if dimension in ("tokens", "output_tokens", "money"):
            self.param = "max_tokens"


class LimitExceeded(ContractError):
    """A limit of the caller's has no room now. ``retry_after_ms``: when this request, alone, fits.

    Also a budget that requests in flight hold: what they do not need comes back.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self,
        scope_name: str,
        dimension: str,
        limit: int,
        used: int,
        requested: int,
        retry_after_ms: int,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        window: str = "minute",
        currency: str = "",
    ) -> None:
        what = _DIMENSIONS.get(dimension, dimension)
        if dimension != "concurrency":
            what += _WINDOWS.get(window, "")
        limit_said, used_said, requested_said = (
            _units(each, dimension, currency) for each in (limit, used, requested)
        )
        super().__init__(
            f"Rate limit reached for {scope_name} on {what}: Limit {limit_said}, "
            f"Used {used_said}, Requested {requested_said}. "
            f"Please try again in {max(0, retry_after_ms) / 1000:.3f}s."
        )
        self.type = "tokens" if dimension.endswith("tokens") else "requests"  # type: ignore[misc]
        self.retry_after_ms = max(0, retry_after_ms)
        self.headers = headers


class QuotaSpent(ContractError):
    """The money is gone: no wait that a client should sit out helps. Amounts in micro-units."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(
        self,
        scope_name: str,
        limit: int,
        used: int,
        remaining: int,
        requested: int,
        window: str,
        currency: str = "",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        if window == "now":
            said = (
                f"The balance of {scope_name} does not cover this request: "
                f"Available {_units(remaining, 'money', currency)}, "
                f"Requested {_units(requested, 'money', currency)}. Add credit to go on."
            )
        else:
            said = (
                f"The budget of {scope_name}{_WINDOWS.get(window, '')} is spent: "
                f"Limit {_units(limit, 'money', currency)}, "
                f"Used {_units(used, 'money', currency)}, "
                f"Requested {_units(requested, 'money', currency)}."
            )
        super().__init__(said)
        self.headers = (*headers, (b"x-should-retry", b"false"))


class CostUnbounded(ContractError):
    """The caller's spending is limited, and nothing bounds what this request may cost."""

    status = 400
    type = INVALID_REQUEST
    code = "cost_unbounded"

    def __init__(self, reason: str, param: str | None = None) -> None:
        super().__init__(f"The cost of this request cannot be bounded beforehand: {reason}.")
        self.param = param


class ModelNotPriced(ContractError):
    """The caller pays, or its spending is limited in a currency, and the model has no price in it."""

    status = 403
    type = INVALID_REQUEST
    code = "model_not_priced"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` has no price that this key's spending could be counted in."
        )


def _units(amount: int, dimension: str, currency: str) -> str:
    """A number of units, or micro-units of money as a decimal."""
    if dimension != "money":
        return str(amount)
    whole, rest = divmod(abs(amount), _MICRO)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{digits} {currency}".rstrip()


class TooManyReads(ContractError):
    """A key looks up too much at once. ``places``: look-ups of one key in flight."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retry_after_ms = 1000

    def __init__(self, places: int) -> None:
        super().__init__(f"More than {places} look-ups at once with one key. Please try again.")


class GenerationNotFound(ContractError):
    """No such request, or another key's: the same bytes."""

    status = 404
    type = INVALID_REQUEST
    code = "generation_not_found"
    param = "id"

    def __init__(self) -> None:
        super().__init__("There is no generation of this key with that id.")


# -- our side's fault --------------------------------------------------------------------------


class StoreAway(ContractError):
    """We cannot admit safely: the store, the journal or the snapshot is away. ``reason`` is shown."""

    status = 503
    type = UNAVAILABLE
    code = "service_unavailable"
    retry_after_ms = 1000

    def __init__(self, reason: str = "limits cannot be checked right now") -> None:
        super().__init__(f"The service is unavailable: {reason}. Please try again.")


class NoCapacity(ContractError):
    """Nothing can take the request now: our capacity, not the caller's limit."""

    status = 503
    type = UNAVAILABLE
    code = "server_is_overloaded"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("The server is overloaded. Please try again later.")
        self.retry_after_s = retry_after_s
        self.retry_after_ms = max(0, round(retry_after_s * 1000))


class EngineBusy(NoCapacity):
    """The engine itself said 429 or 503."""


class Overdue(ContractError):
    status = 504
    type = SERVER
    code = "upstream_timeout"

    def __init__(self) -> None:
        super().__init__("The model did not answer in time.")


class UpstreamError(ContractError):
    """The engine failed, cut its answer short, or said what no engine should."""

    status = 502
    type = SERVER
    code = "upstream_error"

    def __init__(self, message: str = "The model failed to answer.") -> None:
        super().__init__(message)


class UpstreamMisconfigured(ContractError):
    """The engine refused us, not the caller: credentials, route or model name are wrong."""

    status = 503
    type = UNAVAILABLE
    code = "upstream_misconfigured"

    def __init__(self) -> None:
        super().__init__("The model is not available: its endpoint is misconfigured.")


class Draining(ContractError):
    status = 503
    type = UNAVAILABLE
    code = "server_shutting_down"
    retry_after_ms = 1000

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Please try again.")


class EngineRefused(ContractError):
    """The engine found fault with the request: its 4xx, in our words' shape."""

    type = INVALID_REQUEST

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class InternalError(ContractError):
    """Our own bug: nothing is told but the request's id."""

    status = 500
    type = SERVER
    code = "server_error"

    def __init__(self, request_id: str) -> None:
        named = f" (request {request_id})" if request_id else ""
        super().__init__(f"The server had an error while processing your request{named}.")


# -- bytes -------------------------------------------------------------------------------------


def error_body(message: str, type: str, param: str | None, code: str | None) -> bytes:  # noqa: A002 -- OpenAI's name
    """``{"error": {...}}`` with the four keys always there, in OpenAI's order."""
    inner = {"message": message, "type": type, "param": param, "code": code}
    return msgspec.json.encode({"error": inner})


def error_event(error: Exception) -> bytes:
    """The last event of a stream that broke: official clients raise its message; no [DONE] follows."""
    known = error if isinstance(error, ContractError) else InternalError("")
    body = error_body(known.message, known.type, known.param, known.code)
    return b"data: " + body + b"\n\n"
