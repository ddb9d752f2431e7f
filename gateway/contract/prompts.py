"""Whether a body's prompt is text and nothing else, so that its bytes bound its tokens.

A byte-level vocabulary makes no more tokens than bytes; the JSON around each message is longer than
what a chat template puts there. Tools, pictures, documents and template arguments are rendered in
ways that only the engine knows: for those the answer is no, and for some of them the engine can be
asked. Needed only where a ceiling backs money.
"""

import msgspec

from gateway.contract.envelope import Envelope

#: Top-level fields that add nothing to a prompt, or only their own bytes.
PLAIN = frozenset(
    (
        "model", "messages", "prompt", "input", "suffix", "stream", "stream_options", "n", "best_of",
        "max_tokens", "max_completion_tokens", "min_tokens", "user", "safety_identifier",
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty",
        "logprobs", "top_logprobs", "prompt_logprobs", "logit_bias", "echo", "metadata", "store",
        "service_tier", "prompt_cache_key", "encoding_format", "dimensions", "skip_special_tokens",
        "spaces_between_special_tokens", "include_stop_str_in_output", "truncate_prompt_tokens",
    )
)  # fmt: skip
#: What vLLM's /tokenize renders as it would for the answer, and what does not touch the prompt.
RENDERED = ("messages", "tools", "chat_template_kwargs")
COUNTED = PLAIN | frozenset((*RENDERED, "tool_choice", "parallel_tool_calls", "response_format"))
_TEXT_PARTS = frozenset(("text", "input_text", "refusal"))


class _Part(msgspec.Struct):
    type: str


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    refusal: str | None = None


_MESSAGES = msgspec.json.Decoder(list[_Message])


def text_only(body: bytes, envelope: Envelope) -> bool:
    """A second, typed look at the messages; what it does not know is not text."""
    envelope.locate(body)
    if not PLAIN.union(envelope.dropped).issuperset(envelope.index):
        return False
    at = envelope.index.get("messages")
    if at is None:
        return True
    member = envelope.members[at]
    try:
        messages = _MESSAGES.decode(body[member.value : member.end])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return all(
        part.type in _TEXT_PARTS
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


class _AnyMessage(msgspec.Struct):
    content: str | list[_Part] | None = None


_ANY_MESSAGES = msgspec.json.Decoder(list[_AnyMessage])


def question_for(body: bytes, envelope: Envelope, upstream_model: str) -> bytes | None:
    """What to ask an engine's /tokenize; None where its count would leave something out: pictures
    and recordings become tokens there only when they are seen.
    """
    envelope.locate(body)
    at = envelope.index.get("messages")
    if at is None or not COUNTED.union(envelope.dropped).issuperset(envelope.index):
        return None
    member = envelope.members[at]
    try:
        messages = _ANY_MESSAGES.decode(body[member.value : member.end])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    for message in messages:
        if isinstance(message.content, list) and not all(
            part.type in _TEXT_PARTS for part in message.content
        ):
            return None
    parts = [b'"model":' + msgspec.json.encode(upstream_model)]
    for key in RENDERED:
        if key in envelope.index:
            found = envelope.members[envelope.index[key]]
            parts.append(b'"%b":%b' % (key.encode(), body[found.value : found.end]))
    return b"{" + b",".join(parts) + b"}"
