"""However a stream's bytes are cut into reads, the client and the counts get the same."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract.errors import UpstreamError
from gateway.contract.usage import UsageFold
from gateway.wire.relay import Ended, Relay
from gateway.wire.reply import Reply
from gateway.wire.upstream import Upstream

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
NAMES = ("engine-model", "public-model")


def event(number: int, last: bool) -> bytes:
    finish = b'"length"' if last else b"null"
    return (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,'
        b'"model":"engine-model","choices":[{"index":0,"delta":{"content":"token %d"},'
        b'"logprobs":null,"finish_reason":%b,"token_ids":null}],"usage":{"prompt_tokens":16,'
        b'"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}}\n\n'
    ) % (number, finish, 16 + number, number)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def stream(events: int) -> bytes:
    final = (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,'
        b'"model":"engine-model","choices":[],"usage":{"prompt_tokens":16,"total_tokens":%d,'
        b'"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    ) % (16 + events, events)
    made = b"".join(chunk(event(number, number == events)) for number in range(1, events + 1))
    return HEAD + made + chunk(final) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Wire:
    """The transport of either side."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...


class LongWay(Relay):
    """One that takes nothing unparsed."""

    take_chunks = None


class Listener:
    def __init__(self, fold: UsageFold, counts: list) -> None:
        self.fold, self.counts = fold, counts

    def on_commit(self) -> None: ...

    def on_counts(self) -> None:
        self.counts.append((self.fold.prompt, self.fold.completion))

    def on_chunk(self, events: int) -> None: ...

    def on_steady(self) -> None:
        self.counts.append((self.fold.prompt, self.fold.completion))

    def error_of(self, _status: int, _body: bytes) -> UpstreamError:
        return UpstreamError()


async def relayed(reads: list[bytes], kept: str, *, short: bool) -> tuple[bytes, list, UsageFold]:
    """The client's body, the counts as they were noted, and the fold."""
    client, upstream = Wire(), Upstream()
    upstream.connection_made(Wire())
    fold, counts = UsageFold(1, 1), []
    relay = (Relay if short else LongWay)(
        reply=Reply(client, is_head=False, chunked=True, close=False, on_done=lambda _close: None),
        fold=fold,
        stream=True,
        usage_kept=kept,
        names=NAMES,
        lines=b"",
        listener=Listener(fold, counts),
        release=lambda _upstream: None,
    )
    relay.attach(upstream)
    upstream.send(b"", b"", relay)
    for read in reads:
        upstream.data_received(read)
    assert relay.outcome.result() == Ended("finished")
    return unchunked(client.written.partition(b"\r\n\r\n")[2]), counts, fold


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        body, data = body + data[:size], data[size + 2 :]
    return body


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("kept", ["none", "final", "all"])
@settings(max_examples=60, deadline=None)
@given(events=st.integers(1, 9), places=st.lists(st.integers(0, 5000), max_size=12))
async def test_any_cut_gives_the_same(kept: str, events: int, places: list[int]) -> None:
    data = stream(events)
    body, counts, fold = await relayed(cut_at(data, places), kept, short=True)
    long, _, slow = await relayed([data], kept, short=False)
    assert body == long
    assert counts[-1] == (16, events)
    assert [fold.prompt, fold.completion, fold.cached] == [
        slow.prompt,
        slow.completion,
        slow.cached,
    ]


@pytest.mark.parametrize("kept", ["none", "all"])
async def test_chunk_by_chunk_goes_the_short_way(kept: str, monkeypatch) -> None:
    """The proof that the short way is taken: the parser is fed the first and the last of 50."""
    fed = []
    on_body = Upstream.on_body
    monkeypatch.setattr(
        Upstream, "on_body", lambda self, data: (fed.append(data), on_body(self, data))[1]
    )
    data = stream(50)
    reads = [HEAD, *(chunk(event(number, number == 50)) for number in range(1, 51))]
    rest = data[sum(map(len, reads)) :]
    body, counts, _ = await relayed([*reads, rest], kept, short=True)
    assert len(fed) == 3
    assert [completion for _, completion in counts[:50]] == list(range(1, 51))
    several = [HEAD, reads[1], b"".join(reads[2:30]), b"".join(reads[30:]) + rest]
    fed.clear()
    assert (await relayed(several, kept, short=True))[0] == body
    assert len(fed) == 3
