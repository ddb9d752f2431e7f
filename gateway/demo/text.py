"""Seeded, believable words, and a small tokenizer that is its own ground truth. Pure."""

import random
import re
from collections.abc import Iterator

SENTENCE = (
    "the model streams tokens through a quiet gateway while every count is kept and each request "
    "finds an engine with room so that answers arrive in order and nothing is lost when a client "
    "leaves early or a process stops because the ledger remembers what the engine said"
)
WORDS = tuple(SENTENCE.split())
#: What a chat template adds: for the conversation, and for each message.
TEMPLATE_TOKENS = 4
MESSAGE_TOKENS = 3
_TOKEN = re.compile(r"\w{1,6}|\W")


def count(text: str) -> int:
    """Tokens of a text: word pieces of up to six letters, and each other character but spaces."""
    return sum(1 for piece in _TOKEN.findall(text) if piece != " ")


def words(seed: str) -> Iterator[str]:
    """One token of text after another, without end; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 -- repeatable text, not a secret
    yield chance.choice(WORDS).capitalize()
    while True:
        yield " " + chance.choice(WORDS)
