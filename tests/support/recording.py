"""An engine that keeps every byte it is sent, in a thread of its own, and answers as vLLM does."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r$")
_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "demo-model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "yes"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}


class RecordingEngine:
    """``received``: what came, by connection, in order; nothing is thrown away or repaired.

    It reads one request at a time by its Content-Length alone, as strictly as the gateway writes.
    """

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.url = ""

    def start(self) -> "RecordingEngine":
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)
        return self

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    def all(self) -> bytes:
        """Every byte of every connection, with a mark between them."""
        return b"\n--\n".join(map(bytes, list(self.received)))

    def bodies(self, path: bytes = b"/v1/chat/completions") -> list[bytes]:
        """The bodies of whole POST requests to a path, read by Content-Length alone."""
        found = []
        for stream in list(self.received):
            rest = bytes(stream)
            while rest:
                head, end, rest = rest.partition(b"\r\n\r\n")
                if not end:
                    break
                length = _LENGTH.search(head + b"\r\n")
                size = int(length[1]) if length else 0
                if head.startswith(b"POST " + path + b" "):
                    found.append(rest[:size])
                rest = rest[size:]
        return found

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await asyncio.sleep(0.05)  # the closed ones end their tasks

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        self.received.append(seen)
        self._open.add(writer)
        answered = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                seen += data
                whole = _whole(seen)
                for _ in range(whole - answered):
                    body = json.dumps(_ANSWER).encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        b"content-length: %d\r\n\r\n%b" % (len(body), body)
                    )
                answered = whole
        self._open.discard(writer)
        writer.close()


def _whole(stream: bytearray) -> int:
    """How many whole requests lie in a stream."""
    count, at = 0, 0
    while (end := stream.find(b"\r\n\r\n", at)) >= 0:
        length = _LENGTH.search(bytes(stream[at:end]) + b"\r\n")
        at = end + 4 + (int(length[1]) if length else 0)
        if at > len(stream):
            break
        count += 1
    return count


@contextlib.contextmanager
def recording_engine() -> Iterator[RecordingEngine]:
    engine = RecordingEngine().start()
    try:
        yield engine
    finally:
        engine.close()
