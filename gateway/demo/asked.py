"""What a request asks of the demo engine: decoded, checked, counted; refused in vLLM's words. Pure."""

from typing import Any, Literal

import msgspec

from gateway.demo.text import token_ids

#: Tokens the chat template puts around a message, and in front of the answer.
TEMPLATE_PER_MESSAGE = 4
TEMPLATE_TAIL = 3
TOKENS_PER_IMAGE = 256
CHOICES_MAX = 16_384
BOS = 1
MESSAGE_MARK = [2, 2, 2, 2]
TAIL_MARK = [2, 2, 2]

Content = str | list[dict[str, Any]] | None
Prompt = str | list[str | int | list[int]]


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, kind: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param


class Message(msgspec.Struct):
    role: str
    content: Content = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    max_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    ignore_eos: bool | None = False
    cache_salt: str | None = None


class ChatBody(_Common, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None


class TextBody(_Common, kw_only=True):
    prompt: Prompt


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A generation: ``prompts`` as token ids, ``n`` choices of each, at most ``cap`` tokens a choice."""

    chat: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    prompts: list[list[int]]
    n: int
    cap: int
    stops: tuple[str, ...]
    seed: int | None
    ignore_eos: bool
    salt: str


def bad_request(message: str, param: str, value: object) -> Refused:
    told = f"{message} (parameter={param}, value={value})"
    return Refused(400, "BadRequestError", told, param)


def decode(body: bytes, kind: type[Any]) -> Any:
    """The body as a struct; raises ``Refused`` with a status 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `$")
        missing = said.startswith("Object missing required field")
        name = said.split("`")[1] if missing else where.strip(".`")
        place = f"body.{name}" if name else "body"
        message = (
            f"1 validation error:\n  {{'type': 'missing', 'loc': '{place}', 'msg': 'Field required'}}"
            if missing
            else f"1 validation error:\n  {{'type': 'value_error', 'loc': '{place}', 'msg': '{said}'}}"
        )
        raise Refused(400, "Bad Request", message, place) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = (
            "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.0', "
            f"'msg': 'JSON decode error', 'ctx': {{'error': '{error}'}}}}"
        )
        raise Refused(400, "Bad Request", message, "body.0") from None


def check_model(asked: str | None, served: str) -> None:
    if asked is not None and asked != served:
        message = f"The model `{asked}` does not exist. Valid aliases: {served}."
        raise Refused(404, "NotFoundError", message, "model")


def read_chat(body: bytes, model: str, max_model_len: int) -> Asked:
    told = decode(body, ChatBody)
    check_model(told.model, model)
    ids = chat_ids(told.messages, told.tools, max_model_len + 1)
    asked_cap = told.max_completion_tokens
    cap = told.max_tokens if asked_cap is None else asked_cap
    return _generation(told, [ids], max_model_len, cap, chat=True)


def read_text(body: bytes, model: str, max_model_len: int) -> Asked:
    told = decode(body, TextBody)
    check_model(told.model, model)
    prompts = prompt_ids(told.prompt, max_model_len + 1)
    cap = 16 if told.max_tokens is None else told.max_tokens  # OpenAI's default of this route
    return _generation(told, prompts, max_model_len, cap, chat=False)


def chat_ids(
    messages: list[Message], tools: list[dict[str, Any]] | None = None, limit: int | None = None
) -> list[int]:
    """The prompt of a chat with its template; at most about ``limit`` tokens are counted."""
    ids = [] if tools is None else token_ids(msgspec.json.encode(tools).decode(), limit)
    for message in messages:
        ids += MESSAGE_MARK
        ids += _content_ids(message.content, limit)
        if message.tool_calls:
            ids += token_ids(msgspec.json.encode(message.tool_calls).decode(), limit)
        if limit is not None and len(ids) > limit:
            break
    return ids + TAIL_MARK


def prompt_ids(prompt: Prompt, limit: int | None = None) -> list[list[int]]:
    """Prompts of /v1/completions and /v1/embeddings: text begins with one mark, ids are as given."""
    if isinstance(prompt, str):
        return [[BOS, *token_ids(prompt, limit)]]
    found: list[list[int]] = []
    flat: list[int] = []
    for each in prompt:
        if isinstance(each, str):
            found.append([BOS, *token_ids(each, limit)])
        elif isinstance(each, int):
            flat.append(each % (1 << 32))
        else:
            found.append([value % (1 << 32) for value in each])
    if flat:
        found.append(flat)
    if not found or not all(found):
        raise bad_request("Either prompt or prompt_embeds must be provided.", "prompt", "[]")
    return found


def check_length(prompts: list[list[int]], max_model_len: int, cap: int = 0) -> None:
    """Raises vLLM's context overflow."""
    for ids in prompts:
        if len(ids) > max_model_len:
            message = (
                f"This model's maximum context length is {max_model_len} tokens. However, your "
                f"prompt contains at least {max_model_len + 1} input tokens, which exceeds this "
                "limit even without any output tokens. Please reduce the length of the input prompt."
            )
            raise bad_request(message, "input_tokens", max_model_len + 1)
        if len(ids) + cap > max_model_len:
            message = (
                f"This model's maximum context length is {max_model_len} tokens. However, you "
                f"requested {cap} output tokens and your prompt contains at least {len(ids)} input "
                f"tokens, for a total of at least {len(ids) + cap} tokens. Please reduce the length "
                "of the input prompt or the number of requested output tokens."
            )
            raise bad_request(message, "input_tokens", len(ids))


def _generation(
    told: _Common, prompts: list[list[int]], max_model_len: int, cap: int | None, *, chat: bool
) -> Asked:
    if told.temperature is not None and told.temperature < 0:
        message = f"temperature must be non-negative, got {told.temperature}."
        raise bad_request(message, "temperature", told.temperature)
    n = 1 if told.n is None else told.n
    if not 1 <= n <= CHOICES_MAX:
        raise bad_request(f"n must be between 1 and {CHOICES_MAX}, got {n}.", "n", n)
    if told.stream_options is not None and not told.stream:
        message = "Stream options can only be defined when `stream=True`."
        raise bad_request(message, "stream_options", "None")
    if cap is not None and cap < 1:
        raise bad_request(f"max_tokens must be at least 1, got {cap}.", "max_tokens", cap)
    if cap is not None and cap > max_model_len:
        message = (
            f"max_tokens={cap} cannot be greater than max_model_len={max_model_len}. Please "
            "request fewer output tokens."
        )
        raise bad_request(message, "max_tokens", cap)
    check_length(prompts, max_model_len, cap or 1)
    options = told.stream_options or StreamOptions()
    stops = [told.stop] if isinstance(told.stop, str) else told.stop or []
    return Asked(
        chat=chat,
        stream=bool(told.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        prompts=prompts,
        n=n,
        cap=cap or max_model_len - max(map(len, prompts)),
        stops=tuple(stop for stop in stops if stop),
        seed=told.seed,
        ignore_eos=bool(told.ignore_eos),
        salt=told.cache_salt or "",
    )


def _content_ids(content: Content, limit: int | None) -> list[int]:
    if content is None:
        return []
    if isinstance(content, str):
        return token_ids(content, limit)
    ids: list[int] = []
    for part in content:
        text = part.get("text")
        if isinstance(text, str):
            ids += token_ids(text, limit)
        elif "image_url" in part:
            ids += [4] * TOKENS_PER_IMAGE
    return ids
