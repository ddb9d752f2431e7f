"""What the gateway reads of a request's body: a typed envelope around bytes that stay as they are.

Wrong types of what is read are refused with the field's path; everything else is the engine's to
judge. The engine reads the same bytes with another parser, so whatever two parsers could read in
two ways (duplicates, NaN, numbers in strings) is refused here. Not here: the edits
(``contract.edits``), limits and models.
"""

from functools import lru_cache
from typing import Literal, NoReturn, TypeVar

import msgspec

from gateway.contract.errors import InvalidBody
from gateway.contract.skeleton import Shape
from gateway.contract.spans import LIST_MAX, PRIVILEGED, Member, Scan, members_of
from gateway.contract.tiers import FIELD, TIERS

Operation = Literal["chat", "completions", "embeddings"]
OPERATIONS: tuple[Operation, ...] = ("chat", "completions", "embeddings")
#: Tokens an engine makes where the operation has a default of its own; chat has none.
DEFAULT_CAPS: dict[Operation, int | None] = {"chat": None, "completions": 16, "embeddings": 0}
CHOICES_MAX = 8
PROMPT_LOGPROBS_MAX = 20  # vLLM's own
MODEL_CHARS_MAX = 256
CAP_MAX = (1 << 31) - 1
OPTIONS_BYTES_MAX = 4096
OPTION_KEYS = frozenset(("include_usage", "continuous_usage_stats"))

_INT: msgspec.json.Decoder[int | None] = msgspec.json.Decoder(int | None)
_BOOL: msgspec.json.Decoder[bool | None] = msgspec.json.Decoder(bool | None)
_STR: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)
T = TypeVar("T", int, bool, str)
#: What an engine is made to do beyond answering: read only where one of them is there.
BOUNDED = frozenset(("min_tokens", "ignore_eos", "echo", "prompt_logprobs"))
#: Members that most requests have none of: one look tells, before each is read.
_CHOICES = frozenset(("n", "best_of"))
_USER = frozenset(("safety_identifier", "user"))


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's policy for what one request may ask of an engine."""

    choices_max: int = CHOICES_MAX
    prompts_max: int = LIST_MAX
    prompt_logprobs_max: int = PROMPT_LOGPROBS_MAX
    ignore_eos: bool = True
    echo: bool = True


BOUNDS = Bounds()


class Options(msgspec.Struct, frozen=True):
    """``stream_options``: its members, with spans relative to the value's own first byte."""

    members: list[Member]
    index: dict[str, int]
    include_usage: bool
    continuous_usage: bool


class Envelope(msgspec.Struct):
    """One request as read. ``members`` and ``index`` are the top level's spans, for the edits.

    ``n``: choices per prompt, max(n, best_of). ``cap``: the caller's own, None = not said;
    ``default_cap``: the operation's, None = to be injected; ``min_tokens``: what the engine is told
    to make at least. ``text_bytes``: what the prompt's estimate is made from, encoded pictures and
    recordings left out (a tokenizer may put a better measure there). ``user``: the end user, ``safety_identifier`` before ``user``.
    ``tier``: the service tier it names, None = none. ``dropped``: privileged fields that will not
    reach the engine. ``marks``: of a body that was read the short way (``contract.everyday``) where its
    first member begins, and where the model's value begins and ends; ``members`` and ``index`` are
    empty then until it is ``located``.
    """

    operation: Operation
    model: str
    stream: bool
    cap: int | None
    default_cap: int | None
    text_bytes: int
    marks: tuple[int, int, int] | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    n: int = 1
    prompts: int = 1
    min_tokens: int = 0
    user: str | None = None
    tier: str | None = None
    dropped: tuple[str, ...] = ()
    members: list[Member] = []
    index: dict[str, int] = {}
    options: Options | None = None

    def locate(self, body: bytes) -> None:
        """Find the members of the body it was read from, if that was not done yet."""
        if self.marks is not None and not self.members:
            seen = Scan(body)
            seen.finish()
            self.members, self.index = seen.members, seen.index


def scan(body: bytes) -> Scan:
    """Iterate it to look through a large body in slices; then hand it to ``parse``."""
    return Scan(body)


def parse(
    body: bytes, operation: Operation, scanned: Scan | None = None, bounds: Bounds = BOUNDS
) -> Envelope:
    """The envelope of a body; ``InvalidBody`` (400) with the path of what is wrong, or of what is
    more than ``bounds`` allow.

    ``scanned``: a scan of the same body; what it has not done yet is done here at once.
    """
    seen = Scan(body) if scanned is None else scanned
    seen.finish()
    index = seen.index
    model = _model(seen)
    stream = operation != "embeddings" and bool(_read(seen, "stream", _BOOL, "a boolean"))
    options = _options(seen) if "stream_options" in index else None
    asked = stream and options is not None and options.include_usage
    return Envelope(
        operation=operation,
        model=model,
        stream=stream,
        include_usage=asked,
        continuous_usage=asked and options is not None and options.continuous_usage,
        n=1
        if operation == "embeddings" or _CHOICES.isdisjoint(index)
        else _choices(seen, bounds.choices_max),
        prompts=_prompts(seen, operation, bounds.prompts_max),
        cap=_cap(seen, operation),
        default_cap=DEFAULT_CAPS[operation],
        min_tokens=0 if BOUNDED.isdisjoint(index) else _bounded(seen, bounds),
        text_bytes=seen.text_bytes,
        user=None if _USER.isdisjoint(index) else _user(seen),
        tier=None if FIELD not in index else _tier(seen),
        dropped=() if PRIVILEGED.isdisjoint(index) else tuple(k for k in index if k in PRIVILEGED),
        members=seen.members,
        index=index,
        options=options,
    )


def _model(seen: Scan) -> str:
    written = seen.fields.get("model")
    if written is None:
        raise InvalidBody("You must provide a model parameter.", "model")
    model = None
    if len(written) <= 6 * MODEL_CHARS_MAX + 2:  # every character as an escape
        model = _decode(written, _STR, "model", "a string")
    if not model or len(model) > MODEL_CHARS_MAX:
        raise InvalidBody(
            f"'model' must be a string of 1 to {MODEL_CHARS_MAX} characters.", "model"
        )
    return model


def _user(seen: Scan) -> str | None:
    return _read(seen, "safety_identifier", _STR, "a string") or _read(
        seen, "user", _STR, "a string"
    )


def _tier(seen: Scan) -> str | None:
    tier = _read(seen, FIELD, _STR, "a string")
    if tier is not None and tier not in TIERS:
        raise InvalidBody(f"'{FIELD}' must be one of {', '.join(TIERS)}.", FIELD)
    return tier


def _choices(seen: Scan, choices_max: int) -> int:
    most = 1
    for key in ("n", "best_of"):
        choices = _read(seen, key, _INT, "an integer")
        if choices is None:
            continue
        if not 1 <= choices <= choices_max:
            raise InvalidBody(f"'{key}' must be between 1 and {choices_max}.", key)
        most = max(most, choices)
    return most


def _bounded(seen: Scan, bounds: Bounds) -> int:
    """``min_tokens``; refuses what the operator does not allow."""
    least = _read(seen, "min_tokens", _INT, "an integer") or 0
    if not 0 <= least <= CAP_MAX:
        raise InvalidBody(f"'min_tokens' must be between 0 and {CAP_MAX}.", "min_tokens")
    logprobs = _read(seen, "prompt_logprobs", _INT, "an integer")
    if logprobs is not None and not 0 <= logprobs <= bounds.prompt_logprobs_max:
        raise InvalidBody(
            f"'prompt_logprobs' must be between 0 and {bounds.prompt_logprobs_max}.",
            "prompt_logprobs",
        )
    for key, allowed in (("ignore_eos", bounds.ignore_eos), ("echo", bounds.echo)):
        if _read(seen, key, _BOOL, "a boolean") and not allowed:
            raise InvalidBody(f"'{key}' is not allowed here.", key)
    return least


def _cap(seen: Scan, operation: Operation) -> int | None:
    """max_completion_tokens, else max_tokens. /v1/completions has only the latter, and engines that
    know the former there are rare: both are reserved for, and the default where it is the more.
    """
    if operation == "embeddings":
        return None
    longer = _cap_of(seen, "max_completion_tokens")
    cap = _cap_of(seen, "max_tokens")
    if longer is None:
        return cap
    if operation == "chat":
        return longer
    return max(longer, DEFAULT_CAPS[operation] or 0 if cap is None else cap)


def _cap_of(seen: Scan, key: str) -> int | None:
    cap = _read(seen, key, _INT, "an integer")
    if cap is not None and not 0 <= cap <= CAP_MAX:
        raise InvalidBody(f"'{key}' must be between 0 and {CAP_MAX}.", key)
    return cap


def _prompts(seen: Scan, operation: Operation, prompts_max: int) -> int:
    """How many prompts the body asks to be answered."""
    key = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[operation]
    if operation == "embeddings" and key not in seen.index and "messages" in seen.index:
        key = "messages"  # vLLM embeds a conversation too
    at = seen.index.get(key)
    if at is None:
        raise InvalidBody(f"You must provide a {key} parameter.", key)
    first = seen.body[seen.members[at].value : seen.members[at].value + 1]
    if key == "messages":
        if first != b"[":
            raise InvalidBody("'messages' must be an array.", key)
        return 1
    if first == b'"':
        return 1
    if first != b"[":
        raise InvalidBody(f"'{key}' must be a string or an array.", key)
    return _listed(seen.shapes[key], key, prompts_max)


def _listed(shape: Shape, key: str, prompts_max: int) -> int:
    """A list of strings, a list of tokens, or a list of lists of tokens, and nothing between."""
    inner = (len(shape.brackets) - 2) // 2
    if shape.strings:
        regular = shape.brackets == b"[]" and not shape.numbers
        count = shape.commas + 1
    elif inner > 0:
        count = inner
        regular = shape.brackets[:-1] == b"[" + b"[]" * inner or count > LIST_MAX
    else:
        regular, count = shape.numbers, 1
    if count > prompts_max and not shape.others:
        raise InvalidBody(f"'{key}' must have at most {prompts_max} entries.", key)
    if not regular or shape.others:
        raise InvalidBody(
            f"'{key}' must be a string, or an array of strings, of tokens, or of arrays of tokens.",
            key,
        )
    return count


def _options(seen: Scan) -> Options | None:
    member = seen.members[seen.index["stream_options"]]
    value = seen.body[member.value : member.end]
    if value == b"null":
        return None
    if value[:1] != b"{":
        raise InvalidBody("'stream_options' must be an object.", "stream_options")
    if len(value) > OPTIONS_BYTES_MAX:
        raise InvalidBody("'stream_options' is too large.", "stream_options")
    return _options_of(value)


@lru_cache(maxsize=256)
def _options_of(value: bytes) -> Options:
    """Clients write it in a handful of ways: each is read once. Never changed by who holds it."""
    members, index = members_of(value, OPTION_KEYS, "stream_options.")
    flags = dict.fromkeys(OPTION_KEYS, False)
    for key in index.keys() & OPTION_KEYS:
        member = members[index[key]]
        written = value[member.value : member.end]
        flags[key] = bool(_decode(written, _BOOL, f"stream_options.{key}", "a boolean"))
    return Options(members, index, flags["include_usage"], flags["continuous_usage_stats"])


def _read(seen: Scan, key: str, decoder: "msgspec.json.Decoder[T | None]", what: str) -> T | None:
    """A member's value; None where it is absent or null."""
    written = seen.fields.get(key)
    return None if written is None else _decode(written, decoder, key, what)


def _decode(
    written: "msgspec.Raw | bytes", decoder: "msgspec.json.Decoder[T | None]", path: str, what: str
) -> T | None:
    try:
        return decoder.decode(written)
    except (msgspec.DecodeError, UnicodeDecodeError):
        _wrong(path, what)


def _wrong(path: str, what: str) -> NoReturn:
    raise InvalidBody(f"'{path}' must be {what}.", path)
