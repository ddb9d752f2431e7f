"""The bytes of vLLM 0.32's answers, key for key: frames, bodies, errors, pages. Pure.

Written from recorded answers of a real engine. Not here: when they are sent.
"""

import base64
import struct
from collections.abc import Mapping, Sequence

import msgspec

VERSION = "0.32.0"
FINGERPRINT = "vllm-0.32.0-6af7b5d0"
ERROR_TYPES = {
    400: "BadRequestError", 404: "NotFoundError", 429: "TooManyRequestsError",
    500: "InternalServerError", 503: "ServiceUnavailableError",
}  # fmt: skip
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
_encode = msgspec.json.encode


class Counts(msgspec.Struct, frozen=True):
    prompt: int
    completion: int
    cached: int = 0
    created: int = 0


class ChoiceText(msgspec.Struct, frozen=True):
    """A whole choice."""

    index: int
    text: str
    finish: str
    stop_reason: str | None


# -- streams -----------------------------------------------------------------------------------


class Frames:
    """The SSE events of one stream."""

    def __init__(self, request_id: str, created_s: int, model: str, *, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": request_id, "object": kind, "created": created_s, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['

    def role(self, index: int, counts: Counts | None) -> bytes:
        """A chat's first event of a choice."""
        return b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b,"prompt_token_ids":null,"prompt_text":null}\n\n' % (
            self._head, index, self._usage(counts),
        )  # fmt: skip

    def token(
        self,
        index: int,
        text: str,
        finish: str | None,
        stop_reason: str | None,
        counts: Counts | None,
        *,
        sign: bool,
    ) -> bytes:
        """One token of a choice; ``sign`` puts the fingerprint on its last one."""
        usage = self._usage(counts)
        if finish and sign:
            usage += b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        if self._chat:
            stop = b'"stop_reason":%b,' % _encode(stop_reason) if finish else b""
            return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":%b,%b"token_ids":null}]%b}\n\n' % (
                self._head, index, _encode(text), _encode(finish), stop, usage,
            )  # fmt: skip
        return b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":null,"token_ids":null}]%b}\n\n' % (
            self._head, index, _encode(text), _encode(finish), _encode(stop_reason), usage,
        )  # fmt: skip

    def final(self, counts: Counts) -> bytes:
        """The event that ``include_usage`` asks for."""
        made = b',"created_cache_tokens":%d' % counts.created if self._chat else b""
        return b'%b],"usage":{%b,"prompt_tokens_details":{"cached_tokens":%d%b}},"system_fingerprint":"%b"}\n\n' % (
            self._head, _sums(counts), counts.cached, made, FINGERPRINT.encode(),
        )  # fmt: skip

    def _usage(self, counts: Counts | None) -> bytes:
        if counts is None:
            return b""
        details = b',"completion_tokens_details":null' if self._chat else b""
        return b',"usage":{%b%b}' % (_sums(counts), details)


def _sums(counts: Counts) -> bytes:
    return b'"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d' % (
        counts.prompt, counts.prompt + counts.completion, counts.completion,
    )  # fmt: skip


def error_event(status: int, message: str) -> bytes:
    """An error inside a stream; vLLM sends [DONE] after it."""
    return b"data: " + error(status, ERROR_TYPES.get(status, "Error"), message, None) + b"\n\n"


# -- whole answers -----------------------------------------------------------------------------


def chat_body(
    request_id: str,
    created_s: int,
    model: str,
    choices: Sequence[ChoiceText],
    counts: Counts | None,
) -> bytes:
    told: list[dict[str, object]] = [
        {
            "index": choice.index,
            "message": {
                "role": "assistant", "content": choice.text, "refusal": None, "annotations": None,
                "audio": None, "function_call": None, "reasoning": None,
            },
            "logprobs": None, "finish_reason": choice.finish, "stop_reason": choice.stop_reason,
            "token_ids": None, "routed_experts": None,
        }
        for choice in choices
    ]  # fmt: skip
    tail = {
        "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None,
        "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None,
    }  # fmt: skip
    created = counts.created if counts else None
    return _encode(
        _head(request_id, "chat.completion", created_s, model, told, counts, created) | tail
    )


def text_body(
    request_id: str,
    created_s: int,
    model: str,
    choices: Sequence[ChoiceText],
    counts: Counts | None,
) -> bytes:
    told: list[dict[str, object]] = [
        {
            "index": choice.index, "text": choice.text, "logprobs": None,
            "finish_reason": choice.finish, "stop_reason": choice.stop_reason, "token_ids": None,
            "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None,
        }
        for choice in choices
    ]  # fmt: skip
    tail = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
    return _encode(_head(request_id, "text_completion", created_s, model, told, counts) | tail)


def embeddings_body(
    request_id: str,
    created_s: int,
    model: str,
    vectors: Sequence[list[float]],
    prompt_tokens: int | None,
    *,
    as_base64: bool,
) -> bytes:
    """``prompt_tokens`` None: no usage."""
    data = [
        {
            "index": index,
            "object": "embedding",
            "embedding": _packed(values) if as_base64 else values,
        }
        for index, values in enumerate(vectors)
    ]
    body: dict[str, object] = {
        "id": request_id, "object": "list", "created": created_s, "model": model, "data": data,
    }  # fmt: skip
    if prompt_tokens is not None:
        body["usage"] = {
            "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens,
            "completion_tokens": 0, "prompt_tokens_details": None,
        }  # fmt: skip
    return _encode(body)


def tokenize_body(ids: Sequence[int], max_model_len: int, strings: Sequence[str] | None) -> bytes:
    return _encode(
        {"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": strings}
    )


def models_body(model: str, created_s: int, max_model_len: int) -> bytes:
    permission = {
        "id": "modelperm-9c1e10f2257c35bd", "object": "model_permission", "created": created_s,
        "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
        "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
        "organization": "*", "group": None, "is_blocking": False,
    }  # fmt: skip
    card = {
        "id": model, "object": "model", "created": created_s, "owned_by": "vllm", "root": model,
        "parent": None, "max_model_len": max_model_len, "permission": [permission],
    }  # fmt: skip
    return _encode({"object": "list", "data": [card]})


def error(status: int, kind: str, message: str, param: str | None) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def metrics_page(
    model: str,
    gauges: Mapping[str, float],
    counters: Mapping[str, float],
    successes: Mapping[str, int],
    started_s: float,
) -> bytes:
    """Prometheus text. Names without the ``vllm:`` prefix and, for counters, without ``_total``."""
    lines = [
        "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.",
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {started_s}",
    ]
    labels = f'engine="0",model_name="{model}"'
    for name, value in gauges.items():
        lines += [
            f"# TYPE vllm:{name} gauge",
            f"vllm:{name}{{{labels}}} {float(value)}",
        ]
    for name, value in counters.items():
        lines += [
            f"# TYPE vllm:{name}_total counter",
            f"vllm:{name}_total{{{labels}}} {float(value)}",
        ]
    lines.append("# TYPE vllm:request_success_total counter")
    lines += [
        f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}}'
        f" {float(value)}"
        for reason, value in successes.items()
    ]
    return ("\n".join(lines) + "\n").encode()


def _head(
    request_id: str,
    kind: str,
    created_s: int,
    model: str,
    choices: list[dict[str, object]],
    counts: Counts | None,
    created_cache: int | None = None,
) -> dict[str, object]:
    body: dict[str, object] = {
        "id": request_id, "object": kind, "created": created_s, "model": model,
        "choices": choices, "service_tier": None, "system_fingerprint": FINGERPRINT,
    }  # fmt: skip
    if counts is not None:
        body["usage"] = {
            "prompt_tokens": counts.prompt,
            "total_tokens": counts.prompt + counts.completion,
            "completion_tokens": counts.completion,
            "prompt_tokens_details": {
                "cached_tokens": counts.cached,
                "created_cache_tokens": created_cache,
                "multimodal_tokens": None,
            },
            "completion_tokens_details": None,
        }
    return body


def _packed(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
