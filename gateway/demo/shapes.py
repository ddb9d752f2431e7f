"""The objects of vLLM 0.32's answers, key for key and in its order: chunks, choices, usage. Pure.

Written from recorded answers of a real engine, against which the tests hold them. Not here: when
they are sent (``job``), HTTP (``answer``).
"""

from typing import Any

import msgspec

Object = dict[str, Any]
FINGERPRINT = "vllm-0.32.0-demo"


class Told(msgspec.Struct, frozen=True):
    """One choice as it stands. ``finish``: None while it goes on."""

    index: int
    text: str
    finish: str | None = None
    stop_reason: str | None = None


def head(request_id: str, created_s: int, model: str, *, chat: bool, stream: bool) -> Object:
    """What every chunk and body begins with."""
    kind = "text_completion"
    if chat:
        kind = "chat.completion.chunk" if stream else "chat.completion"
    prefix = "chatcmpl" if chat else "cmpl"
    return {
        "id": f"{prefix}-{request_id or 'demo'}",
        "object": kind,
        "created": created_s,
        "model": model,
    }


def role_chunk(began: Object, index: int, usage: Object | None) -> Object:
    """A chat's first event of a choice."""
    choice = {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    counted = {"usage": usage} if usage else {}
    return {
        **began,
        "choices": [choice],
        **counted,
        "prompt_token_ids": None,
        "prompt_text": None,
    }


def token_chunk(
    began: Object, told: Told, usage: Object | None, *, chat: bool, sign: bool = False
) -> Object:
    """One token of a choice; ``sign``: no event of usage follows that would bear the fingerprint."""
    choice: Object = {"index": told.index}
    if chat:
        choice |= {"delta": {"content": told.text}, "logprobs": None, "finish_reason": told.finish}
        if told.finish:
            choice["stop_reason"] = told.stop_reason
        choice["token_ids"] = None
    else:
        choice |= {
            "text": told.text,
            "logprobs": None,
            "finish_reason": told.finish,
            "stop_reason": told.stop_reason,
            "prompt_token_ids": None,
            "token_ids": None,
        }
    counted = {"usage": usage} if usage else {}
    signed = {"system_fingerprint": FINGERPRINT} if sign and told.finish else {}
    return {**began, "choices": [choice], **counted, **signed}


def final_chunk(began: Object, prompt: int, completion: int, *, chat: bool) -> Object:
    """The event that ``include_usage`` asks for."""
    details: Object = {"cached_tokens": 0}
    if chat:
        details["created_cache_tokens"] = 0
    usage = sums(prompt, completion) | {"prompt_tokens_details": details}
    return {**began, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}


def running_usage(prompt: int, completion: int, *, chat: bool) -> Object:
    """A choice's own counts, in each of its chunks."""
    details = {"completion_tokens_details": None} if chat else {}
    return sums(prompt, completion) | details


def whole(began: Object, told: list[Told], usage: Object | None, *, chat: bool) -> Object:
    """A whole answer."""
    tail: Object = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
    if chat:
        tail = {
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
        } | tail
    return {
        **began,
        "choices": [_whole_choice(each, chat=chat) for each in told],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        **({"usage": usage} if usage else {}),
        **tail,
    }


def whole_usage(prompt: int, completion: int, *, chat: bool) -> Object:
    details = {
        "cached_tokens": 0,
        "created_cache_tokens": 0 if chat else None,
        "multimodal_tokens": None,
    }
    return sums(prompt, completion) | {
        "prompt_tokens_details": details,
        "completion_tokens_details": None,
    }


def sums(prompt: int, completion: int) -> Object:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }


def _whole_choice(told: Told, *, chat: bool) -> Object:
    ended = {"logprobs": None, "finish_reason": told.finish, "stop_reason": told.stop_reason}
    if chat:
        message = {
            "role": "assistant",
            "content": told.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return (
            {"index": told.index, "message": message}
            | ended
            | {
                "token_ids": None,
                "routed_experts": None,
            }
        )
    return (
        {"index": told.index, "text": told.text}
        | ended
        | {
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
    )
