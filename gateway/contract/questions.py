"""What /tokenize is asked: a request's prompts, an answer's texts; and what its answer says.

Bodies are made of spans of the caller's own bytes and of strings as they came. A conversation is
asked about only where the engine renders it whole (``contract.prompts``).
Shapes: vLLM's ``TokenizeChatRequest`` and ``TokenizeCompletionRequest``. Not here: who is asked.
"""

import msgspec

from gateway.contract.envelope import Envelope
from gateway.contract.prompts import question_for

#: Asked about at most, in bytes of all questions of one request: an engine's time is not ours.
ASKED_BYTES_MAX = 2 << 20
#: A list of prompts is decoded, so it is short.
LIST_BYTES_MAX = 128 << 10
QUESTIONS_MAX = 16


class Questions(msgspec.Struct, frozen=True):
    """Bodies to ask, and tokens known without asking; the sum of all is the count."""

    bodies: tuple[bytes, ...] = ()
    known: int = 0


class _Counted(msgspec.Struct):
    count: int


_decoder = msgspec.json.Decoder(_Counted)


def of_prompt(body: bytes, envelope: Envelope, upstream_model: str) -> Questions | None:
    """The prompts of a request; None where they are not to be asked about."""
    model = b'{"model":' + msgspec.json.encode(upstream_model)
    envelope.locate(body)
    if "messages" in envelope.index and envelope.operation != "completions":
        question = question_for(body, envelope, upstream_model)
        return None if question is None else _bounded([question])
    prompt = _value(body, envelope, "prompt" if envelope.operation == "completions" else "input")
    if prompt[:1] == b'"':
        return _bounded([model + b',"prompt":' + prompt + b"}"])
    return _of_list(prompt, model)


def of_texts(texts: list[bytes] | None, upstream_model: str) -> Questions | None:
    """An answer's texts, escaped as in JSON; an end of sequence the model made is not among them."""
    if texts is None:
        return None
    model = b'{"model":' + msgspec.json.encode(upstream_model)
    tail = b'","add_special_tokens":false}'
    return _bounded([model + b',"prompt":"' + text + tail for text in texts])


def count_in(answer: bytes) -> int | None:
    """Tokens as an engine counted them; None for any other answer."""
    try:
        count = _decoder.decode(answer).count
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return count if 0 <= count < 1 << 32 else None


def _of_list(written: bytes, model: bytes) -> Questions | None:
    """Texts are asked about; tokens are counted as they lie there."""
    if len(written) > LIST_BYTES_MAX:
        return None
    entries = msgspec.json.decode(written)
    if all(isinstance(each, int) for each in entries):
        return Questions(known=len(entries))
    tokens = sum(len(each) for each in entries if isinstance(each, list))
    texts = [each for each in entries if isinstance(each, str)]
    encoded = [model + b',"prompt":' + msgspec.json.encode(text) + b"}" for text in texts]
    return _bounded(encoded, tokens)


def _bounded(bodies: list[bytes], known: int = 0) -> Questions | None:
    if len(bodies) > QUESTIONS_MAX or sum(map(len, bodies)) > ASKED_BYTES_MAX:
        return None
    return Questions(tuple(bodies), known)


def _value(body: bytes, envelope: Envelope, name: str) -> bytes:
    member = envelope.members[envelope.index[name]]
    return body[member.value : member.end]
