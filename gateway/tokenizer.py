"""A vocabulary at hand: prompts counted in its tokens, as a better start for the estimate.

Optional (``tokenfactory[tokenizers]``). The vocabulary is a file of the operator's (tiktoken's own
format: base64 and rank, a line a token) and never comes from the network. It is seldom the model's
own, so its count is only what the learned ratio is applied to. Counting runs in a thread (tiktoken
lets go of the GIL) on the beginning of a body; where there is too much to do, or a text that cannot
be split, bytes are used. Not here: the estimate (``quotas.estimate``).
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: What is counted of a body; the rest is taken to be like it. 64 kB take some 10 ms.
COUNTED_BYTES_MAX = 65_536
#: A shorter body is estimated as well by its bytes, and sooner.
COUNTED_BYTES_MIN = 1_024
#: Bodies that wait for the thread; more are not counted.
WAITING_MAX = 32
#: How text is split before bytes are merged: cl100k's expression, which never backtracks.
PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
#: One token counts as three bytes, so that the first ratio of a third is one.
BYTES_PER_TOKEN = 3


class TokenizerError(Exception):
    """The vocabulary cannot be used; the message says why."""


class Tokenizer:
    """One per data process. ``count`` gives tokens of a text, and may raise ``ValueError``."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._waiting = 0

    async def measure(self, body: bytes, text_bytes: int) -> int:
        """The body's size in the estimate's bytes: three a token, or ``text_bytes`` as it is."""
        if not len(body) >= COUNTED_BYTES_MIN or self._waiting >= WAITING_MAX:
            return text_bytes
        beginning = body[:COUNTED_BYTES_MAX]
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            tokens = await loop.run_in_executor(self._thread, self._tokens, beginning)
        except ValueError:
            return text_bytes
        finally:
            self._waiting -= 1
        return max(1, BYTES_PER_TOKEN * tokens * text_bytes // len(beginning))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tokens(self, beginning: bytes) -> int:
        return self._count(beginning.decode("utf-8", "replace"))


def load(folder: str, name: str) -> Tokenizer:
    """The vocabulary NAME.tiktoken of a folder. Raises ``TokenizerError``."""
    path = Path(folder) / f"{name}.tiktoken"
    try:
        # Imported here: an optional dependency, for those who configure a vocabulary.
        import tiktoken  # noqa: PLC0415
    except ImportError:
        raise TokenizerError("TF_TOKENIZER needs tokenfactory[tokenizers]") from None
    try:
        ranks = read_ranks(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"TF_TOKENIZER: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise TokenizerError(f"TF_TOKENIZER: {path}: {error}") from None
    encoding = tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer(lambda text: len(encoding.encode_ordinary(text)))


def read_ranks(vocabulary: bytes) -> dict[bytes, int]:
    """Token -> rank. Raises ``ValueError`` for what is no vocabulary of bytes."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(vocabulary.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not a token and its rank") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{len(missing)} single bytes are no tokens of it")
    return ranks
