"""Bytes out are bytes in, less the declared edits, wherever the engine's bytes are cut; and whatever an
engine says, a stream ends clearly: [DONE] as it came, or one error event and none.
"""

import asyncio
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract.errors import Draining, UpstreamError
from gateway.contract.usage import UsageFold
from gateway.errors import normalise_engine_error
from gateway.wire.relay import EARLY_BYTES_MAX, Ended, Failed, Relay
from gateway.wire.reply import Reply
from gateway.wire.upstream import Upstream
from tests.support.recordings import RECORDED, STREAMS

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nserver: uvicorn\r\nset-cookie: a=b\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that only remembers."""

    def __init__(self):
        super().__init__()
        self.data = b""
        self.reading = True
        self.aborted = False

    def write(self, data):
        self.data += data

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Bench:
    """A relay between a client's and an engine's transport; ``told`` is what it called, in order."""

    def __init__(self, *, stream=True, kept="none", names=None, prompts=1, n=1):
        self.client, self.engine = Wire(), Wire()
        self.told = []
        self.released = []
        self.fold = UsageFold(prompts, n)
        self.reply = Reply(
            self.client, is_head=False, chunked=True, close=False, on_done=lambda close: None
        )
        self.relay = Relay(
            reply=self.reply,
            fold=self.fold,
            stream=stream,
            usage_kept=kept,
            names=names,
            lines=b"x-request-id: ours\r\n",
            listener=self,
            release=self.released.append,
        )
        self.upstream = Upstream()
        self.upstream.connection_made(self.engine)
        self.relay.attach(self.upstream)
        self.upstream.send(b"", b"", self.relay)

    def on_commit(self):
        self.told.append("commit")

    def on_counts(self):
        self.told.append(("counts", self.fold.completion, len(self.body)))

    def on_chunk(self, events):
        self.told.append(("chunk", events))

    def on_steady(self):
        self.told.append(("steady", self.fold.completion, len(self.body)))

    def error_of(self, status, body):
        return normalise_engine_error(status, body, "up", "public")

    def feed(self, *pieces):
        for piece in pieces:
            if not self.engine.aborted:
                self.upstream.data_received(piece)
        return self

    def close(self):
        """The engine closes its side."""
        if not self.engine.aborted:
            self.upstream.connection_lost(None)
        return self

    @property
    def outcome(self):
        return self.relay.outcome.result() if self.relay.outcome.done() else None

    @property
    def head(self):
        return self.client.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self):
        """What the client got: chunks joined, or the sized body."""
        head, _, data = self.client.data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return data
        out = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            out += data[: int(size, 16)]
            assert data[int(size, 16) :][:2] == b"\r\n"
            data = data[int(size, 16) + 2 :]
        return out

    @property
    def whole(self):
        return self.client.data.endswith(END)


def chunked(*parts):
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)


def event(choices, usage=None, **fields):
    made = {"id": "chatcmpl-1", "model": "up", "choices": choices} | fields
    if usage:
        made["usage"] = usage
    return b"data: " + json.dumps(made, separators=(",", ":")).encode() + b"\n\n"


def token(text, made=1):
    counts = {"prompt_tokens": 7, "total_tokens": 7 + made, "completion_tokens": made}
    return event([{"index": 0, "delta": {"content": text}}], counts)


def error_of(body):
    """The one error event a stream ended with."""
    assert body.count(b'"error"') == 1
    assert DONE not in body
    frame = body[body.rindex(b"data: ") :]
    assert frame.endswith(b"\n\n")
    return json.loads(frame[6:])["error"]


# -- bytes in, bytes out ------------------------------------------------------------------------

USAGE = b'"usage":{"prompt_tokens":16,"total_tokens":%d,"completion_tokens":%d%b}'
texts = st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=len(text) % 2 == 0))
#: Fields we do not know, as odd as JSON allows: order, escapes and spacing are theirs.
unknown = st.lists(
    st.sampled_from(
        [
            b'"z" : [1 , 2,{"usage" : "no" , "deep":{"model":[]}}],',
            b'"\\u0061bc":"\\/ \\u00e9 \\ud83d\\ude00",',
            b'"t":"data: [DONE] \\"usage\\":{\\"prompt_tokens\\":9} \\n\\n",',
            b'"n":-0.0e-5,"b":true , "x":null,',
            b'"long":"' + b"y" * 3000 + b'",',
        ]
    ),
    max_size=2,
).map(b"".join)


@st.composite
def frames(draw):
    """(the engine's frame, what a client that asked for no usage gets, completion counted)."""
    kind = draw(st.integers(0, 9))
    end = draw(st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n"]))
    if kind == 0:
        comment = draw(st.sampled_from([b": keep-alive", b":", b"retry: 5", b"event: x\nid: 7"]))
        return comment + end, comment + end, None
    before, after = draw(unknown), draw(unknown)
    said = draw(texts).encode()
    lead = draw(st.sampled_from([b"", b"", b"event: message\n", b"id: 3\r\n"]))
    opening = lead + b"data: {" + before + b'"model":'
    choices = b',"choices":[{"index":0,"delta":{"content":%b},"finish_reason":null}]' % said
    closing = (b"," + after[:-1] if after else b"") + b"}" + end
    if kind <= 2:
        return (
            opening + b'"up"' + choices + closing,
            opening + b'"public"' + choices + closing,
            None,
        )
    made = draw(st.integers(0, 999))
    details = draw(st.sampled_from([b"", b',"completion_tokens_details":null']))
    usage = b"," + USAGE % (16 + made, made, details)
    return (
        opening + b'"up"' + choices + usage + closing,
        opening + b'"public"' + choices + closing,
        made,
    )


def cut_at(data, cuts):
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at) if a != b]


cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), max_size=12), cuts, cuts, st.booleans())
async def test_bytes_out_are_bytes_in_less_the_declared_edits(made, chunk_cuts, read_cuts, dribble):
    first = (
        token("a"),
        token("a").split(b',"usage"')[0].replace(b'"up"', b'"public"') + b"}\n\n",
        1,
    )
    made = [*made, first]
    stream = b"".join(frame for frame, _, _ in made) + DONE
    wire = SSE + chunked(*cut_at(stream, chunk_cuts)) + END
    pieces = [wire[at : at + 1] for at in range(len(wire))] if dribble else cut_at(wire, read_cuts)
    bench = Bench(names=("up", "public")).feed(*pieces)

    assert bench.body == b"".join(wanted for _, wanted, _ in made) + DONE
    assert bench.whole
    assert bench.outcome == Ended("finished")
    assert bench.released == [bench.upstream]
    assert bench.fold.completion == 1
    assert bench.fold.prompt == 7
    events = sum(told[1] for told in bench.told if told[0] == "chunk")
    wanted = sum(b"data: {" in frame for frame, _, _ in made)
    assert events == wanted if all(told[0] != "steady" for told in bench.told) else events < wanted


@pytest.mark.parametrize("kept", ["none", "final", "all"])
@pytest.mark.parametrize("name", STREAMS)
async def test_recorded_streams_lose_only_the_usage_that_was_not_asked_for(name, kept):
    recorded = (RECORDED / name).read_bytes()
    wanted = []
    for frame in re.split(rb"(?<=\n\n)", recorded):
        final = b'"choices":[]' in frame
        if kept == "all" or (final and kept == "final"):
            wanted.append(frame)
        elif not final:
            wanted.append(re.sub(rb',"usage":\{[^{}]*\}', b"", frame))
    sizes = (1, 7, 64, 1000, len(recorded))
    events = re.split(rb"(?<=\n\n)", recorded)  # as vLLM sends it: an event a chunk, a chunk a read
    for parts in (
        events,
        *([recorded[at : at + n] for at in range(0, len(recorded), n)] for n in sizes),
    ):
        bench = Bench(kept=kept, prompts=2).feed(SSE, *(chunked(part) for part in parts), END)

        assert bench.body == b"".join(wanted)
        assert bench.outcome == Ended("finished")


@pytest.mark.parametrize("kept", ["none", "final", "all"])
async def test_a_frame_of_300_kb_is_passed_on_in_one_piece(kept):
    large = event([{"index": 0, "delta": {"content": "x" * 300_000}}])
    bench = Bench(kept=kept).feed(SSE, *cut_at(chunked(large), range(0, 300_000, 9_000)))
    bench.feed(chunked(DONE), END)

    assert bench.body == large + DONE


async def test_only_our_headers_reach_the_client():
    bench = Bench().feed(SSE, chunked(token("a"), DONE), END)
    names = [line.partition(b":")[0] for line in bench.head.split(b"\r\n")[1:]]

    assert names == [
        b"date", b"content-type", b"cache-control", b"x-accel-buffering", b"x-request-id",
        b"transfer-encoding",
    ]  # fmt: skip


async def test_counts_are_told_before_the_bytes_that_carry_them():
    bench = Bench(kept="all").feed(SSE, *(chunked(token("a", made)) for made in (1, 2, 3)))
    size = len(chunked(token("a")))

    assert bench.told == [
        "commit", ("counts", 1, 0), ("chunk", 1), ("steady", 2, len(token("a"))),
        ("steady", 3, 2 * len(token("a"))),
    ]  # fmt: skip
    assert size > len(token("a"))


async def test_comments_before_the_first_event_commit_nothing_and_go_out_with_it():
    bench = Bench().feed(SSE, chunked(b": one\n\n"), chunked(b": two\n\n"))
    assert (bench.client.data, bench.told, bench.outcome) == (b"", [], None)
    bench.feed(chunked(token("a")))

    assert bench.body.startswith(b": one\n\n: two\n\ndata: {")
    assert bench.told[0] == "commit"


async def test_comments_alone_are_no_events():
    bench = Bench().feed(SSE, chunked(token("a")), chunked(b": keep-alive\n\n"))

    assert bench.told[-1] == ("chunk", 0)
    assert bench.body.endswith(b": keep-alive\n\n")


async def test_done_without_its_blank_line_is_done():
    bench = Bench().feed(SSE, chunked(token("a"), b"data: [DONE]"), END)

    assert bench.outcome == Ended("finished")
    assert bench.body.endswith(b"data: [DONE]")
    assert bench.whole


# -- streams that break -------------------------------------------------------------------------

VLLM_ERROR = b'data: {"error":{"message":"%b","type":"%b","param":null,"code":%b}}\n\n'
BREAKS = {
    "closed": (b"", "cut"),
    "ended without [DONE]": (END, "ended"),
    "a chunk cut": (b"ff\r\ndata: {", "cut"),
    "half a frame": (chunked(b'data: {"id"') + END, "ended"),
    "no HTTP chunk": (b"zz\r\n", "now"),
    "no JSON": (chunked(b"data: hello\n\n"), "now"),
    "half an object": (chunked(b'data: {"id":"x","choices":[\n\n'), "now"),
    "an array": (chunked(b"data: [1,2]\n\n"), "now"),
    "a number": (chunked(b"data: 7\n\n"), "now"),
    "empty data": (chunked(b"data:\n\n"), "now"),
    "HTML": (chunked(b"data: <html></html>\n\n"), "now"),
    "a frame above 1 MiB": (
        chunked(b'data: {"x":"' + b"y" * (1 << 20)) + chunked(b'y"}\n\n'),
        "now",
    ),
    "an event without end": (chunked(b'data: {"x":"' + b"y" * (1 << 21)), "now"),
    "error event": (chunked(VLLM_ERROR % (b"boom", b"InternalServerError", b"500")), "now"),
    "error event, then [DONE]": (
        chunked(VLLM_ERROR % (b"boom", b"InternalServerError", b"500"), DONE) + END,
        "now",
    ),
    "error event of another field": (
        chunked(b"event: error\n" + VLLM_ERROR % (b"boom", b"x", b"null")),
        "now",
    ),
    "old vLLM's error": (chunked(b'data: {"object":"error","message":"boom"}\n\n'), "now"),
    "error as text": (chunked(b'data: {"error":"boom"}\n\n'), "now"),
    "compressed chunks": (chunked(b"\x1f\x8b\x08\0\n\n"), "cut"),
}


def ended(bench, how):
    return bench.close() if how in ("cut", "ended") else bench


@pytest.mark.parametrize(("script", "how"), BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_ends_as_one_error_event_without_done(script, how):
    bench = ended(Bench().feed(SSE, chunked(token("a")), script), how)

    error = error_of(bench.body)
    assert error["code"] == "upstream_error"
    assert b"boom" not in bench.body
    assert bench.whole
    assert bench.outcome == Ended("engine_error")
    assert not bench.released
    assert bench.engine.aborted


@pytest.mark.parametrize(("script", "how"), BREAKS.values(), ids=BREAKS)
async def test_one_that_breaks_before_its_first_event_may_be_tried_elsewhere(script, how):
    bench = ended(Bench().feed(SSE, script), how)

    assert isinstance(bench.outcome, Failed)
    assert bench.outcome.kind in ("cut_before_head", "engine_5xx")
    assert not bench.outcome.reused
    assert (bench.client.data, bench.told) == (b"", [])
    assert bench.engine.aborted


@pytest.mark.parametrize("name", ["error event", "no JSON", "no HTTP chunk"])
async def test_where_a_broken_stream_is_cut_into_reads_changes_nothing(name):
    wire = SSE + chunked(token("a"), token("b", 2)) + BREAKS[name][0]
    whole = Bench().feed(wire)
    for at in range(1, len(wire)):
        bench = Bench().feed(wire[:at], wire[at:])
        assert (bench.body, bench.outcome) == (whole.body, whole.outcome)
        assert bench.fold.completion == 2


async def test_done_alone_is_no_answer():
    assert isinstance(Bench().feed(SSE, chunked(DONE), END).outcome, Failed)


async def test_an_engine_that_only_comments_is_given_up():
    bench = Bench().feed(SSE)
    for _ in range(EARLY_BYTES_MAX // 1000 + 1):
        bench.feed(chunked(b": " + b"x" * 1000 + b"\n\n"))

    assert bench.outcome == Failed("engine_5xx")


@pytest.mark.parametrize(
    ("kind", "code", "status", "failure"),
    [
        (b"BadRequestError", b"400", 400, "engine_4xx"),
        (b"BadRequestError", b'"400"', 400, "engine_4xx"),
        (b"BadRequestError", b"null", 400, "engine_4xx"),
        (b"invalid_request_error", b'"context_length_exceeded"', 400, "engine_4xx"),
        (b"NotFoundError", b"404", 404, "misconfigured"),
        (b"rate_limit_error", b"null", 429, "engine_busy"),
        (b"ServiceUnavailableError", b"503", 503, "engine_busy"),
        (b"InternalServerError", b"500", 500, "engine_5xx"),
        (b"x", b"200", 500, "engine_5xx"),
        (b"x", b"true", 500, "engine_5xx"),
    ],
)
async def test_an_error_event_that_comes_first_is_the_attempts_status(kind, code, status, failure):
    bench = Bench().feed(SSE, chunked(VLLM_ERROR % (b"why", kind, code), DONE), END)

    assert isinstance(bench.outcome, Failed)
    assert (bench.outcome.kind, bench.outcome.status) == (failure, status)
    assert b"why" in bench.outcome.body
    assert not bench.client.data


async def test_an_error_event_that_nobody_can_read_is_one_all_the_same():
    bench = Bench().feed(SSE, chunked(b'data: {"error":{"message":"why","code":1e999}}\n\n'))

    assert (bench.outcome.kind, bench.outcome.status) == ("engine_5xx", 500)


async def test_an_error_of_the_callers_ends_a_stream_in_the_engines_scrubbed_words():
    said = VLLM_ERROR % (b"grammar of up failed at /models/up/x.py", b"BadRequestError", b"400")
    bench = Bench().feed(SSE, chunked(token("a")), chunked(said))
    error = error_of(bench.body)

    assert error["message"] == "grammar of public failed at [path]"
    assert (error["type"], error["code"]) == ("invalid_request_error", "400")


# -- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "engine_4xx"), (401, "misconfigured"), (403, "misconfigured"), (404, "misconfigured"),
        (413, "engine_4xx"), (422, "engine_4xx"), (429, "engine_busy"), (500, "engine_5xx"),
        (502, "engine_5xx"), (503, "engine_busy"), (301, "engine_5xx"), (201, "engine_5xx"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_another_status_is_the_attempts_and_its_connection_is_kept(status, kind, stream):
    body = b'{"error":{"message":"no"}}'
    head = b"HTTP/1.1 %d X\r\nlocation: http://elsewhere\r\ncontent-length: %d\r\n\r\n"
    bench = Bench(stream=stream).feed(head % (status, len(body)) + body)

    assert bench.outcome == Failed(kind, status, body)
    assert bench.released == [bench.upstream]
    assert not bench.client.data


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0), (b"1.5", 1.5), (b"99999", 99_999.0), (b"0", 0.0), (b"-1", None),
        (b"9" * 400, None), (b"soon", None), (b"Wed, 21 Oct 2026 07:28:00 GMT", None), (b"", None),
        (b"1e5", None), ("²".encode(), None),
    ],
)  # fmt: skip
async def test_retry_after_is_believed_where_it_is_a_number_of_seconds(value, seconds):
    head = b"HTTP/1.1 503 X\r\nretry-after: %b\r\ncontent-length: 0\r\n\r\n" % value

    assert Bench().feed(head).outcome == Failed("engine_busy", 503, b"", seconds)


async def test_an_error_body_without_end_is_cut_and_its_connection_not_kept():
    bench = Bench().feed(b"HTTP/1.1 400 X\r\ntransfer-encoding: chunked\r\n\r\n")
    bench.feed(*[chunked(b"x" * 16_000)] * 6)

    assert bench.outcome.status == 400
    assert len(bench.outcome.body) < 100_000
    assert bench.relay.attached
    bench.relay.drop()
    assert bench.engine.aborted


async def test_a_kept_connection_that_dies_before_a_byte_is_told_as_such():
    bench = Bench()
    bench.upstream.served = 1
    bench.close()
    assert bench.outcome == Failed("cut_before_head", reused=True)
    fed = Bench()
    fed.upstream.served = 1
    fed.feed(b"H").close()
    assert fed.outcome == Failed("cut_before_head")


# -- whole answers ------------------------------------------------------------------------------


def sized(body, kind=b"application/json"):
    head = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
async def test_a_recorded_whole_answer_is_the_same_but_for_its_model(size):
    body = (RECORDED / "chat.body").read_bytes()
    wire = sized(body)
    bench = Bench(stream=False, names=("tiny-llama", "public"))
    bench.feed(*(wire[at : at + size] for at in range(0, len(wire), size)))

    assert bench.body == body.replace(b'"tiny-llama"', b'"public"')
    assert bench.head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"server" not in bench.head
    assert b"content-length: %d" % len(bench.body) in bench.head
    assert bench.outcome == Ended("finished")
    assert (bench.fold.prompt, bench.fold.completion) == (16, 5)
    assert bench.released == [bench.upstream]


NO_ANSWERS = {
    "HTML": sized(b"<html>"),
    "nothing": sized(b""),
    "half an object": sized(b'{"choices":['),
    "an array": sized(b"[]"),
    "an error": sized(b'{"error":{"message":"boom","code":500}}'),
    "cut": sized(b'{"choices":[]}')[:-3],
    "megabytes of nonsense": sized(b"x" * 100_000),
}


@pytest.mark.parametrize("script", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_what_is_no_answer_is_not_passed_on(script):
    bench = Bench(stream=False).feed(script).close()

    assert bench.outcome == Ended("engine_error")
    assert not bench.client.data


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (True, b"application/json"),
        (False, b"text/event-stream"),
        (False, b"text/html"),
        (True, b""),
    ],
)
async def test_an_answer_of_another_kind_is_a_failure(stream, kind):
    bench = Bench(stream=stream).feed(sized(b"{}", kind))

    assert bench.outcome == Failed("engine_5xx")
    assert bench.engine.aborted


async def test_the_kind_of_content_is_read_without_case():
    assert Bench(stream=False).feed(sized(b"{}", b"Application/JSON")).outcome == Ended("finished")


# -- what ends it from outside ------------------------------------------------------------------


async def test_stopping_closes_the_engines_connection_at_once():
    bench = Bench().feed(SSE, chunked(token("a")))
    bench.relay.stop("client_abort")

    assert bench.engine.aborted
    assert bench.outcome == Ended("client_abort")
    assert b"error" not in bench.body


async def test_stopping_with_an_error_tells_it_as_the_last_event():
    bench = Bench().feed(SSE, chunked(token("a")))
    bench.relay.stop("shutdown", Draining())
    bench.relay.stop("timeout", UpstreamError())

    assert error_of(bench.body)["code"] == "server_shutting_down"
    assert bench.whole
    assert bench.outcome == Ended("shutdown")


async def test_silence_sends_the_head_and_a_comment_and_the_stream_goes_on():
    bench = Bench().feed(SSE)
    bench.relay.ping()
    bench.relay.ping()
    bench.feed(chunked(token("a"), DONE), END)

    assert bench.body.startswith(b": ping\n: ping\ndata: {")
    assert bench.body.endswith(DONE)
    assert bench.outcome == Ended("finished")


async def test_after_a_ping_a_failure_is_still_the_attempts_and_says_its_status():
    bench = Bench()
    bench.relay.ping()
    bench.feed(SSE, chunked(VLLM_ERROR % (b"why", b"BadRequestError", b"400")))

    assert (bench.outcome.kind, bench.outcome.status) == ("engine_4xx", 400)
    assert bench.body == b": ping\n"
    assert not bench.reply.done


async def test_a_slow_reader_pauses_the_engine_and_its_end_is_read_all_the_same():
    bench = Bench().feed(SSE, chunked(token("a")))
    bench.reply.on_pause()
    assert not bench.engine.reading
    bench.reply.on_resume()
    assert bench.engine.reading
    bench.reply.on_pause()
    bench.upstream.data_received(chunked(DONE))

    assert bench.engine.reading
    bench.feed(END)
    assert bench.released == [bench.upstream]


async def test_bytes_after_done_end_the_trust_in_the_connection():
    bench = Bench().feed(SSE, chunked(token("a"), DONE), chunked(b"data: more\n\n"), END)

    assert bench.body.endswith(DONE)
    assert not bench.released
    assert bench.engine.aborted


# -- anything at all ----------------------------------------------------------------------------

GOOD = SSE + chunked(token("a"), b": c\n\n", *(token("b", made) for made in (2, 3, 4)), DONE) + END
PIECES = st.sampled_from(
    [
        b"", b"\r\n", b"\n", b"\n\n", b"\0", b"0\r\n\r\n", b"data: ", b"data: {}\n\n", b"[DONE]",
        b'"usage":{', b'"error":', b"ffffffff\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"{", b"}",
        b"content-length: 3\r\n", b'"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}',
    ]
)  # fmt: skip


@st.composite
def spoilt(draw):
    """A good answer with something cut out, doubled or put in, a few times."""
    wire = GOOD
    for _ in range(draw(st.integers(1, 4))):
        a, b = sorted((draw(st.integers(0, len(wire))), draw(st.integers(0, len(wire)))))
        middle = draw(st.one_of(PIECES, st.binary(max_size=6), st.just(wire[a:b] * 2)))
        b = draw(st.sampled_from([a, min(b, a + 3), b]))
        wire = wire[:a] + middle + wire[b:]
    return wire


@settings(max_examples=300, deadline=None)
@given(spoilt(), st.one_of(cuts, st.none()), st.booleans())
async def test_whatever_an_engine_says_it_ends_and_nothing_is_raised(wire, read_cuts, stream):
    if read_cuts is None:  # as vLLM sends it: a chunk a read
        reads = [read for read in re.split(rb"(?<=\n\n\r\n)", wire) if read]
    else:
        reads = cut_at(wire, read_cuts)
    bench = Bench(stream=stream, names=("up", "public")).feed(*reads).close()

    assert bench.outcome is not None
    if isinstance(bench.outcome, Failed):
        assert not bench.client.data
    elif stream:
        assert bench.whole
        ended_well = bench.outcome == Ended("finished")
        assert ended_well == (b"[DONE]" in bench.body.rpartition(b"data: ")[2])
        if not ended_well:
            error_of(bench.body[bench.body.rindex(b"data: ") :])


@settings(max_examples=200, deadline=None)
@given(spoilt())
async def test_the_short_way_and_the_long_way_say_the_same(wire):
    """A chunk a read may be taken in one step; the same bytes cut elsewhere never are."""
    short = [read for read in re.split(rb"(?<=\n\n\r\n)", wire) if read]
    one = Bench(names=("up", "public")).feed(*short).close()
    other = Bench(names=("up", "public")).feed(
        *(wire[at : at + 3] for at in range(0, len(wire), 3))
    )
    other.close()

    # A CR LF that is cut in two leaves its LF to the next event, and a cut stream has no next one.
    bodies = [re.sub(rb"[\r\n]+", b"\n", each.body) for each in (one, other)]
    assert bodies[0] == bodies[1]
    assert one.outcome == other.outcome
    assert (one.fold.prompt, one.fold.completion) == (other.fold.prompt, other.fold.completion)


async def test_only_the_final_usage_says_the_cost_and_only_where_usage_is_kept():
    running = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}\n\n'
    final = b'data: {"choices":[],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}\n\n'

    def told(kept):
        bench = Bench(kept=kept)
        bench.relay.cost_of = lambda: b'"cost":"%d"' % bench.fold.completion
        return bench.feed(SSE, *(chunked(each) for each in (running, final, DONE)), END).body

    assert told("final").count(b'"cost"') == 1
    assert told("all") == running + final.replace(b"1}}", b'1,"cost":"1"}}') + DONE
    assert b"cost" not in told("none")
