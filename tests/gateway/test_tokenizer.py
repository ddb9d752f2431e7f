"""A vocabulary of the operator's own measures prompts, in a thread, and is never fetched."""

import asyncio
import base64
import threading
from pathlib import Path

import pytest

from gateway.tokenizer import (
    COUNTED_BYTES_MAX,
    COUNTED_BYTES_MIN,
    WAITING_MAX,
    Tokenizer,
    TokenizerError,
    load,
    read_ranks,
)


def vocabulary(*words: bytes) -> bytes:
    """Every single byte, then some merges of them in order."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [word[:length] for word in words for length in range(2, len(word) + 1)]
    return b"\n".join(
        b"%s %d" % (base64.b64encode(token), rank)
        for rank, token in enumerate(dict.fromkeys(tokens))
    )


async def test_a_vocabulary_counts_words_and_not_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.tiktoken").write_bytes(vocabulary(b" token"))
    tokenizer = load(str(tmp_path), "mine")
    body = b" token" * 1_000
    assert await tokenizer.measure(body, len(body)) == 3 * 1_000
    tokenizer.close()


async def test_short_bodies_are_measured_by_their_bytes() -> None:
    tokenizer = Tokenizer(lambda _: 1)
    assert await tokenizer.measure(b"x" * (COUNTED_BYTES_MIN - 1), 7) == 7
    tokenizer.close()


async def test_a_long_body_is_counted_at_its_beginning_and_scaled() -> None:
    seen: list[int] = []

    def count(text: str) -> int:
        seen.append(len(text))
        return 100

    tokenizer = Tokenizer(count)
    body = b"x" * (4 * COUNTED_BYTES_MAX)
    assert await tokenizer.measure(body, len(body)) == 3 * 100 * 4
    assert seen == [COUNTED_BYTES_MAX]
    tokenizer.close()


async def test_a_text_that_cannot_be_split_is_measured_by_its_bytes() -> None:
    def fails(text: str) -> int:
        raise ValueError("Max stack size exceeded")

    tokenizer = Tokenizer(fails)
    assert await tokenizer.measure(b"x" * 2_000, 2_000) == 2_000
    tokenizer.close()


async def test_it_runs_in_one_thread_and_too_many_are_not_counted() -> None:
    threads: set[str] = set()
    gate = threading.Event()

    def count(text: str) -> int:
        threads.add(threading.current_thread().name)
        gate.wait(5)
        return 5

    tokenizer = Tokenizer(count)
    body = b"x" * 3_000
    asked = [asyncio.create_task(tokenizer.measure(body, 9_000)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    assert await tokenizer.measure(body, 9_000) == 9_000
    gate.set()
    assert set(await asyncio.gather(*asked)) == {3 * 5 * 3}
    assert threads == {"tokenizer_0"}
    tokenizer.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        (b"", "256 single bytes"),
        (b"not base64", "line 1"),
        (vocabulary() + b"\nYWI= x", "line 257"),
    ],
)
def test_a_vocabulary_that_is_none_is_told(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "mine.tiktoken").write_bytes(content)
    with pytest.raises(TokenizerError, match=said):
        load(str(tmp_path), "mine")


def test_ranks_are_read_as_written() -> None:
    assert read_ranks(vocabulary(b"ab"))[b"ab"] == 256
