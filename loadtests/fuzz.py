"""Feeds bytes that nobody chose to what reads bytes: heads, chunks, PROXY headers, bodies, events.

    python -m loadtests.fuzz --executions 1000000 --seed 7

Inputs are the suites' own corpora, cut, repeated, spliced, flipped and strewn with what matters to
their readers. It stops at an exception that is not declared, at a verdict that differs from that of
another reader of the same bytes, and at an input of which sixteen times as much costs far more than
sixteen times the time. Prints one line a target, then JSON. A short form is in the suite.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from random import Random

import msgspec
from httptools import (
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from gateway.contract import everyday, pieces, skeleton
from gateway.contract.edits import edit
from gateway.contract.envelope import OPERATIONS, parse, scan
from gateway.contract.errors import ContractError, InvalidBody
from gateway.contract.pieces import Broken, check_syntax
from gateway.contract.skeleton import check_depth
from gateway.contract.sse import FrameSplitter, FrameTooLarge, Kind, kind_of
from gateway.contract.steady import Steady
from gateway.contract.usage import UsageFold, cut, error_in, rename
from gateway.settings import WireSettings
from gateway.wire.chunked import ChunkedBody
from gateway.wire.guard import read_head
from gateway.wire.head_cache import HeadCache
from gateway.wire.heads import chunk
from gateway.wire.proxy_header import SIGNATURE, read_proxy
from gateway.wire.upstream import PLAIN_HEAD
from tests.support.hostile import LARGE, hostile
from tests.support.malformed import cases

SETTINGS = WireSettings()
WHOLE = msgspec.json.Decoder(msgspec.Raw)
INPUT_BYTES_MAX = 4096
#: Every so often an input is tried sixteen times as long.
GROWTH_EVERY = 2000
GROWTH_BYTES_MIN = 1 << 13
TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b",", b";", b"\r\n\r\n", b"chunked", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"0\r\n\r\n", b"%2e", b"/../", b"HTTP/1.1", b"PROXY ", SIGNATURE,
    b'"', b"\\", b'\\"', b"\\\\", b"\\u0070", b"\\ud83d", b"\\ude00", b"[", b"]", b"{", b"}", b"[]", b"{}", b"NaN", b"1e9",
    b'"n":1', b'"model":"m"', b'"stream_options":{"include_usage":true}', b'"priority":1', b"true", b"null",
    b"data: ", b"data:", b"\n\n", b"event: x\n", b": ping\n\n", b"[DONE]", b"\xef\xbb\xbf", b"\xff", b"\xc3", "é".encode(),
)  # fmt: skip


STEADY_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"up",'
    b'"choices":[{"index":0,"delta":{"content":"tok"},"logprobs":null,"finish_reason":null}],'
    b'"usage":{"prompt_tokens":20,"total_tokens":27,"completion_tokens":7}}\n\n'
)
VLLM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: 9\r\ncontent-type: application/json\r\nx-request-id: a-1\r\n\r\n"
)
OK = 200


class Found(Exception):
    """What the fuzzing was for; ``data`` shows it again."""

    def __init__(self, what: str, data: bytes) -> None:
        super().__init__(f"{what}: {data[:2000]!r}")


def mutated(corpus: list[bytes], chance: Random) -> bytes:
    """One input: a few changes to one of the corpus."""
    data = chance.choice(corpus)
    for _ in range(chance.choice((0, 1, 1, 2, 3, 5, 8))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 5, 30)))
        way = chance.randrange(6)
        if way == 0:
            data = data[:at] + chance.choice(TOKENS) + data[at:]
        elif way == 1:
            data = data[:at] + data[end:]
        elif way == 2:
            data = data[:at] + chance.randbytes(1) + data[at + 1 :]
        elif way == 3:
            data = data[:end] + data[at:end] * chance.randrange(1, 9) + data[end:]
        elif way == 4:
            other = chance.choice(corpus)
            cut = chance.randrange(len(other) + 1)
            data = data[:at] + other[cut:]
        else:
            data = data[:at] + chance.choice(TOKENS) + data[end:]
    return data[:INPUT_BYTES_MAX]


# -- the targets: each raises ``Found``, or anything that is not declared -----------------------


_CACHE = HeadCache(SETTINGS)


def fuzz_heads(data: bytes, _: Random) -> None:
    """A head that passes is one that llhttp passes, and a kept verdict is the verdict."""
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        read = read_head(head, SETTINGS)
    except ContractError:
        read = None
    try:
        kept, length = _CACHE.read(head)
    except ContractError:
        kept, length = None, None
    if kept is None:
        if read is not None and _llhttp_agrees(head):
            raise Found("the cache refuses what both readers pass", head)
        return
    if read is None:
        raise Found("the cache passes what the guard refuses", head)
    if not _llhttp_agrees(head):
        raise Found("llhttp refuses what passes", head)
    if (kept.method, kept.target, length, kept.close) != (read.method, read.target, read.length, read.close):  # fmt: skip
        raise Found("the cache's verdict is another", head)


def _llhttp_agrees(head: bytes) -> bool:
    try:
        HttpRequestParser(object()).feed_data(head)
    except HttpParserUpgrade:
        return True
    except HttpParserError:
        return False
    return True


def fuzz_chunks(data: bytes, chance: Random) -> None:
    """However the bytes are cut, the body, its end and the verdict are the same."""
    whole, cut = _chunks([data]), _chunks(_split(data, chance))
    if whole != cut:
        raise Found("a chunked body depends on how it is cut", data)


def _chunks(parts: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    body = ChunkedBody(1 << 20)
    rest: list[bytes] = []
    try:
        for part in parts:
            if body.done:
                rest.append(part)
                continue
            body.feed(part)
            while body.behind:
                body.feed(b"")
    except ContractError:
        return None
    return bytes(body.body), body.done, (b"".join((body.rest, *rest)) if body.done else b"")


def fuzz_proxy(data: bytes, _: Random) -> None:
    """A header is read whole or not at all."""
    try:
        read = read_proxy(data)
    except ContractError:
        return
    if read is not None and read_proxy(data[: read[1]]) != read:
        raise Found("a PROXY header depends on what follows it", data)


def fuzz_bodies(data: bytes, chance: Random) -> None:
    """What passes reads the same to Python's parser, before and after the edits."""
    operation = chance.choice(OPERATIONS)
    try:
        envelope = parse(data, operation)
    except InvalidBody:
        return
    seen = json.loads(data)
    if seen["model"] != envelope.model or (bool(seen.get("stream")) != envelope.stream and operation != "embeddings"):  # fmt: skip
        raise Found("the envelope reads another request", data)
    sent = json.loads(
        edit(
            data,
            envelope,
            upstream_model="up",
            ask_usage="continuous" if envelope.stream else None,
            inject_cap=None,
            cache_salt="salt",
        )
    )
    for name in envelope.dropped:
        seen.pop(name, None)
    seen |= {"model": "up", "cache_salt": "salt"}
    if envelope.stream:
        options = seen.get("stream_options") or {}
        seen["stream_options"] = options | {"include_usage": True, "continuous_usage_stats": True}
    if seen != sent:
        raise Found("an edit changed more than it should", data)


def fuzz_everyday(data: bytes, chance: Random) -> None:
    """A body that is read the short way reads and is edited alike the long way."""
    operation = chance.choice(OPERATIONS)
    short = everyday.read(data, operation)
    if short is None:
        return
    try:
        long = parse(data, operation)
    except InvalidBody:
        raise Found("the short way passes what the long way refuses", data) from None
    made = []
    for envelope in (short, long):
        fields = msgspec.structs.asdict(envelope)
        sent = edit(
            data, envelope,
            upstream_model="up", ask_usage="final" if envelope.stream else None,
            inject_cap=7 if envelope.cap is None else None, cache_salt="salt",
        )  # fmt: skip
        made.append(
            (
                sent,
                *[
                    fields[name]
                    for name in ("model", "stream", "cap", "default_cap", "n", "prompts")
                ],
            )
        )
    if made[0] != made[1]:
        raise Found("the short way reads another request", data)


def fuzz_steady(data: bytes, chance: Random) -> None:
    """An event that is taken in one step is counted and edited alike the long way."""
    cuts = chance.random() < 0.5
    names = chance.choice((None, ("up", "public/name"), ("up", "m")))
    counted, fold = UsageFold(1, 1), UsageFold(1, 1)
    steady = Steady(counted, cuts_usage=cuts, names=names)
    steady.take(chunk(STEADY_EVENT))  # what it learns from must not be believed of others
    out = steady.take(chunk(data))
    if out is None:
        return
    frames = FrameSplitter().feed(data)
    if frames != [data] or kind_of(data) is not Kind.OBJECT or error_in(data) is not None:
        raise Found("what is taken is not one event", data)
    fold.look(data)
    edited = cut(data) if cuts else data
    if edited is not None and names:
        edited = rename(edited, *names)
    if edited is None or out != chunk(edited):
        raise Found("the short way edits otherwise", data)
    if (counted.prompt, counted.completion) != (fold.prompt, fold.completion):
        raise Found("the short way counts otherwise", data)


class _Answer:
    """What llhttp makes of a response."""

    def __init__(self) -> None:
        self.body, self.whole, self.keeps = b"", False, False
        self.headers: list[bytes] = []
        self.parser = HttpResponseParser(self)

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.headers.append(name.lower())

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole, self.keeps = True, self.parser.should_keep_alive()


def fuzz_answers(data: bytes, _: Random) -> None:
    """A head that needs no parser says to llhttp what it says to us."""
    plain = PLAIN_HEAD.match(data)
    if plain is None:
        return
    size = int(plain[1] or plain[4])
    if size > INPUT_BYTES_MAX:
        return
    seen = _Answer()
    try:
        seen.parser.feed_data(plain[0] + b"x" * size)
    except HttpParserError:
        raise Found("llhttp refuses what needs no parser", data) from None
    if not seen.whole or len(seen.body) != size or seen.parser.get_status_code() != OK:
        raise Found("llhttp sees another answer", data)
    if not seen.keeps or {b"transfer-encoding", b"content-encoding"} & set(seen.headers):  # fmt: skip
        raise Found("an answer closes or is coded", data)


def fuzz_pieces(data: bytes, chance: Random) -> None:
    """Piece by piece, the verdict is that of one decode; and so is a scan in slices."""
    size = chance.choice((12, 13, 20, 64, 500))
    with _slices(size):
        try:
            for _ in check_depth(data):
                pass
            for _ in check_syntax(data):
                pass
        except InvalidBody:
            return
        except Broken as broken:
            judged = False
            if not 0 <= broken.at <= len(data) + 1:
                raise Found("the place of an error lies outside", data) from None
        else:
            judged = True
    try:
        WHOLE.decode(data)
        data.decode()
        whole = True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        whole = False
    if judged and not whole and _is_text(data):
        raise Found("pieces pass what the decoder refuses", data)
    if whole and not judged and size > 64 and b"0" * size not in data:
        raise Found("pieces refuse what the decoder passes", data)


@contextlib.contextmanager
def _slices(size: int) -> Iterator[None]:
    kept = skeleton.SLICE_BYTES, skeleton.FIRST_BYTES, skeleton.FINE_BYTES
    skeleton.SLICE_BYTES = pieces.SLICE_BYTES = size
    skeleton.FIRST_BYTES = skeleton.FINE_BYTES = min(size, 12)
    try:
        yield
    finally:
        skeleton.SLICE_BYTES, skeleton.FIRST_BYTES, skeleton.FINE_BYTES = kept
        pieces.SLICE_BYTES = kept[0]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def fuzz_spans(data: bytes, _: Random) -> None:
    """Every member's span holds its key and one value."""
    looked = scan(data)
    try:
        looked.finish()
    except InvalidBody:
        return
    for member in looked.members:
        key = data[member.start : member.value].rstrip(b" \t\r\n").removesuffix(b":")
        if json.loads(key) != member.key:
            raise Found("a span begins at another key", data)
        WHOLE.decode(data[member.value : member.end])


def fuzz_events(data: bytes, chance: Random) -> None:
    """However a stream is cut, its frames are the same, and together they are the stream."""
    whole, cut = _frames([data]), _frames(_split(data, chance))
    if whole is None or cut is None:
        return
    if b"".join(cut) != data or b"".join(whole) != data:
        raise Found("bytes of a stream are lost", data)


def _frames(parts: list[bytes]) -> list[bytes] | None:
    splitter = FrameSplitter()
    try:
        frames = [frame for part in parts for frame in splitter.feed(part)]
    except FrameTooLarge:
        return None
    return [*frames, splitter.finish()]


def _split(data: bytes, chance: Random) -> list[bytes]:
    step = chance.choice((1, 2, 3, 7, 50))
    return [data[at : at + step] for at in range(0, len(data), step)]


# -- running ------------------------------------------------------------------------------------

Target = Callable[[bytes, Random], None]


def corpora() -> dict[str, tuple[Target, list[bytes]]]:
    requests = [case.data[:INPUT_BYTES_MAX] for case in cases(b"tf_live_key", b"m")]
    bodies = [body for _, body in hostile(b"m") if len(body) <= INPUT_BYTES_MAX]
    bodies += [body.replace(b"MODEL", b"m")[:800] for body in LARGE.values()]
    right = {"model": "m", "messages": [{"role": "user", "content": 'a "b" \\ é'}], "stream": True,
             "stream_options": {"include_usage": False, "x": [1, {}]}, "n": 2, "priority": 1, "z": [[], {}]}  # fmt: skip
    bodies += [json.dumps(right, indent=indent).encode() for indent in (None, 2)] * 40
    bodies += [
        b'{"model":"m","prompt":["a",1],"input":[[1,2],[3]],"x":{"y":"\\ud83d\\ude00"}}'
    ] * 20
    chunked = [data.partition(b"\r\n\r\n")[2] for data in requests if b"chunked" in data]
    proxies = [SIGNATURE + b"\x21\x11\0\x0c" + bytes(12), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"]
    proxies += [b"PROXY TCP6 ::1 ::2 1 2\r\nGET /", SIGNATURE + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n"]
    events = [b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n' * 3]
    events += [
        b": ping\r\n\r\ndata: a\r\ndata: b\r\n\r\ndata: [DONE]\r\n\r\n",
        b"event: e\rdata: x\r\r",
        b"\n\n\n",
    ]
    plain = [
        json.dumps(right | {"max_tokens": 5}).encode(),
        b'{"model":"m","prompt":"a \\"b\\" [{","stream":true}',
    ]
    plain += [
        b'{"model":"m","messages":[{"role":"user","content":"hi \\u00e9"}],"max_tokens":5}'
    ] * 4
    answers = [VLLM_HEAD, VLLM_HEAD.replace(b"\r\nserver: uvicorn", b"\r\nconnection: keep-alive")]
    answers += [VLLM_HEAD.replace(b"content-length: 9\r\n", b"").replace(b"\r\n\r\n", b"\r\ncontent-length: 9\r\n\r\n")]  # fmt: skip
    return {
        "heads": (fuzz_heads, requests),
        "chunks": (fuzz_chunks, chunked),
        "proxy": (fuzz_proxy, proxies),
        "guard": (fuzz_bodies, bodies),
        "pieces": (fuzz_pieces, bodies),
        "spans": (fuzz_spans, bodies),
        "events": (fuzz_events, events),
        "everyday": (fuzz_everyday, plain),
        "steady": (fuzz_steady, [STEADY_EVENT, STEADY_EVENT.replace(b"tok", b'a \\"up\\" b')]),
        "answers": (fuzz_answers, answers),
    }


def cost_s(target: Target, data: bytes) -> float:
    """CPU time of one input, the least of three."""
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        target(data, Random(1))
        best = min(best, time.thread_time() - began)
    return best


def check_growth(name: str, target: Target, data: bytes) -> None:
    """Sixteen times the bytes may cost sixteen times the time, and some; quadratic is 256 times."""
    if not data:
        return
    some = data * (GROWTH_BYTES_MIN // len(data) + 1)
    if cost_s(target, some * 16) > 40 * cost_s(target, some) + 0.02:
        raise Found(f"{name} takes more than linear time", data)


def run(executions: int, seed: int, only: str | None = None) -> dict[str, dict[str, float]]:
    """Results by target; raises ``Found``, or what a reader should not have raised."""
    results = {}
    chosen = {name: each for name, each in corpora().items() if only in (None, name)}
    for name, (target, corpus) in chosen.items():
        chance = Random(f"{seed} {name}")
        count = executions // len(chosen)
        began = time.monotonic()
        slowest = 0.0
        for at in range(count):
            data = mutated(corpus, chance)
            before = time.thread_time()
            try:
                target(data, chance)
            except Found:
                raise
            except Exception as error:
                raise Found(f"{name} raised {type(error).__name__}: {error}", data) from error
            slowest = max(slowest, time.thread_time() - before)
            if at % GROWTH_EVERY == GROWTH_EVERY - 1:
                check_growth(name, target, data)
        took_s = time.monotonic() - began
        results[name] = {"executions": count, "seconds": round(took_s, 1), "slowest_ms": round(slowest * 1000, 2)}  # fmt: skip
        print(f"{name:8} {count:9,} executions {took_s:7.1f} s  slowest {slowest * 1000:.2f} ms", flush=True)  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--target", choices=sorted(corpora()))
    options = parser.parse_args()
    print(json.dumps(run(options.executions, options.seed, options.target)))


if __name__ == "__main__":
    main()
