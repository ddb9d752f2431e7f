"""Whether a body's prompt is text and nothing else, so that its bytes bound its tokens.

A byte-level vocabulary makes no more tokens than bytes; the JSON around each message is longer than
what a chat template puts there. Tools, pictures, documents and template arguments are rendered in
ways that only the engine knows: for those the answer is no. Asked only where a ceiling backs money.
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
