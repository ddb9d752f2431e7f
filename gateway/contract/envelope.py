"""What the gateway reads of a request body: a few fields, by type, with the path of what is wrong.

Everything else passes through unread. Not here: edits (``edits``), which models exist.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec

from gateway.contract.errors import InvalidBody
from gateway.contract.spans import SLICE_BYTES, DepthScan, Member, members

Operation = Literal["chat", "completions", "embeddings"]
OPERATIONS: tuple[Operation, ...] = ("chat", "completions", "embeddings")
#: Choices per prompt: an unbounded n has killed engines (CVE-2026-34756).
N_MAX = 8
PROMPTS_MAX = 2048
MODEL_BYTES_MAX = 256
#: OpenAI's own default on /v1/completions.
COMPLETIONS_CAP = 16
#: Engine-privileged inputs that no caller may set; DESIGN: removed and named in x-tf-dropped.
PRIVILEGED = (
    "priority",
    "cache_salt",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "request_id",
    "session_id",
    "prompt_embeds",
    "mm_processor_kwargs",
    "chat_template",
    "stream_interval",
)
_PRIVILEGED = frozenset(PRIVILEGED)
#: Below this many brackets no body can be too deep, and counting them is one pass in C.
_BRACKETS_SAFE = 64

_int = msgspec.json.Decoder(int | None)
_bool = msgspec.json.Decoder(bool | None)
_str = msgspec.json.Decoder(str)
_any = msgspec.json.Decoder()
_list = msgspec.json.Decoder(list[msgspec.Raw])


class Envelope:
    """``n``: choices per prompt. ``cap``: the caller's own output cap. ``default_cap``: the
    operation's, where the caller gave none and nothing is to be injected (0 for embeddings).
    """

    __slots__ = (
        "cap",
        "continuous_usage",
        "default_cap",
        "dropped",
        "include_usage",
        "members",
        "model",
        "n",
        "operation",
        "prompts",
        "stream",
        "stream_options",
        "text_bytes",
    )

    def __init__(self, operation: Operation, found: list[Member], model: str) -> None:
        self.operation = operation
        self.members = found
        self.model = model
        self.stream = False
        self.include_usage = False
        self.continuous_usage = False
        self.stream_options: bytes | None = None
        self.n = 1
        self.prompts = 1
        self.cap: int | None = None
        self.default_cap: int | None = None
        self.text_bytes = 0
        self.dropped: tuple[str, ...] = ()


def scan(body: bytes) -> Iterator[None]:
    """The depth check in slices: take a turn of the loop at each step, then ``parse(scanned)``."""
    depth = DepthScan()
    for start in range(0, len(body), SLICE_BYTES):
        depth.feed(body[start : start + SLICE_BYTES])
        yield
    depth.finish()


def parse(body: bytes, operation: Operation, *, scanned: bool = False) -> Envelope:
    """The envelope of a body. Raises ``InvalidBody`` with the path of what is wrong."""
    if not scanned and body.count(b"[") + body.count(b"{") > _BRACKETS_SAFE:
        for _ in scan(body):
            pass
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidBody(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    found = members(body)
    values = {member.key: body[member.value_start : member.end] for member in found}
    envelope = Envelope(operation, found, _model(values))
    envelope.text_bytes = len(body)
    envelope.dropped = tuple(key for key in values if key in _PRIVILEGED)
    _read_choices(envelope, values)
    _read_caps(envelope, values)
    _read_stream(envelope, values)
    envelope.prompts = _prompts(operation, values)
    return envelope


def _model(values: dict[str, bytes]) -> str:
    raw = values.get("model")
    if raw is None:
        raise InvalidBody("you must provide a model parameter", "model")
    model: str = _typed(_str, raw, "model", "a string")
    if not 0 < len(model.encode()) <= MODEL_BYTES_MAX:
        raise InvalidBody(f"model must have 1 to {MODEL_BYTES_MAX} bytes.", "model")
    return model


def _read_choices(envelope: Envelope, values: dict[str, bytes]) -> None:
    for key in ("n", "best_of"):
        raw = values.get(key)
        count = None if raw is None else _typed(_int, raw, key, "an integer")
        if count is None:
            continue
        if not 1 <= count <= N_MAX:
            raise InvalidBody(f"{key} must be from 1 to {N_MAX}, got {count}.", key)
        envelope.n = max(envelope.n, count)


def _read_caps(envelope: Envelope, values: dict[str, bytes]) -> None:
    if envelope.operation == "embeddings":
        envelope.default_cap = 0
        return
    for key in ("max_completion_tokens", "max_tokens"):
        raw = values.get(key)
        cap = None if raw is None else _typed(_int, raw, key, "an integer")
        if cap is not None and cap < 0:
            raise InvalidBody(f"{key} must not be negative, got {cap}.", key)
        if cap is not None and envelope.cap is None:
            envelope.cap = cap
    if envelope.operation == "completions":
        envelope.default_cap = COMPLETIONS_CAP


def _read_stream(envelope: Envelope, values: dict[str, bytes]) -> None:
    raw = values.get("stream")
    if raw is not None and envelope.operation != "embeddings":
        envelope.stream = bool(_typed(_bool, raw, "stream", "a boolean"))
    options = values.get("stream_options")
    if options is None or options == b"null":
        return
    if options[:1] != b"{":
        raise InvalidBody("stream_options must be an object.", "stream_options")
    envelope.stream_options = options
    for member in members(options, "stream_options"):
        if member.key in ("include_usage", "continuous_usage_stats"):
            path = f"stream_options.{member.key}"
            value = _typed(_bool, options[member.value_start : member.end], path, "a boolean")
            if member.key == "include_usage":
                envelope.include_usage = bool(value)
            else:
                envelope.continuous_usage = bool(value)


def _prompts(operation: Operation, values: dict[str, bytes]) -> int:
    """How many prompts the body holds: a list of strings or of token lists is that many."""
    if operation == "chat":
        raw = values.get("messages")
        if raw is None or raw[:1] != b"[":
            raise InvalidBody("messages must be an array of messages.", "messages")
        return 1
    key = "prompt" if operation == "completions" else "input"
    raw = values.get(key)
    if raw is None:
        raise InvalidBody(f"you must provide {key}.", key)
    if raw[:1] == b'"':
        return 1
    if raw[:1] != b"[":
        raise InvalidBody(f"{key} must be a string or an array.", key)
    items: list[msgspec.Raw] = _typed(_list, raw, key, "an array")
    if not items:
        raise InvalidBody(f"{key} must not be empty.", key)
    if bytes(items[0])[:1] not in (b'"', b"[", b"{"):
        return 1  # one prompt given as token ids
    if len(items) > PROMPTS_MAX:
        raise InvalidBody(f"{key} may hold at most {PROMPTS_MAX} prompts.", key)
    return len(items)


def _typed(decoder: msgspec.json.Decoder, raw: bytes, path: str, expected: str):  # type: ignore[no-untyped-def,type-arg]
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidBody(f"{path} must be {expected}.", path) from None
