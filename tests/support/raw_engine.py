"""An engine that answers the bytes it is told to, in a thread of its own.

What it says to a request is chosen by a word in the request's body, so that many cases share one
gateway: ``"case":"NAME"`` picks a script, anything else the right answer, which repeats the
request's own ``"nonce"``. A script is bytes, pauses in seconds, and one of ``CLOSE``, ``RESET``.
"""

import asyncio
import json
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from weakref import WeakSet

CLOSE, RESET = "close", "reset"
Script = Sequence[bytes | float | str]
CASE = re.compile(rb'"case": ?"([^"]*)"')
NONCE = re.compile(rb'"nonce": ?"([^"]*)"')


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)


def sized(body: bytes, status: int = 200, *headers: bytes) -> bytes:
    lines = b"".join(b"%b\r\n" % each for each in headers)
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, lines, len(body), body,
    )  # fmt: skip


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nserver: uvicorn\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "total_tokens": 8, "completion_tokens": 1}


def event(text: str, **fields: object) -> bytes:
    made = {
        "id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": "demo-model",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        "usage": USAGE,
    } | fields  # fmt: skip
    return b"data: " + json.dumps(made, separators=(",", ":")).encode() + b"\n\n"


def right(nonce: str, *, stream: bool) -> bytes:
    """The answer that belongs to a request."""
    if stream:
        final = event("", choices=[])
        return STREAM_HEAD + chunked(event(nonce), final, DONE) + END
    message = {"role": "assistant", "content": nonce}
    body = {
        "id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": "demo-model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE,
    }  # fmt: skip
    return sized(json.dumps(body).encode())


class RawEngine:
    """``scripts`` by case. ``log``: (head, body) of every inference request seen; ``connections``:
    those that carried one.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._scheme = "https" if context else "http"
        self.connections = Counter[str]()
        self.scripts: dict[str, Script] = {}
        self.log: list[tuple[bytes, bytes]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._attend, "127.0.0.1", 0, ssl=context))
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._carriers: WeakSet[asyncio.StreamWriter] = WeakSet()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # who asked has left
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"POST /v1/") or b'"model"' not in body:
            writer.write(sized(b"{}"))  # probes and scrapes
            return True
        if b'"messages"' in body and b'"nonce"' not in body:
            writer.write(
                right("probe", stream=b'"stream": true' in body or b'"stream":true' in body)
            )
            return True
        self.log.append((head, body))
        if writer not in self._carriers:
            self._carriers.add(writer)
            self.connections["inference"] += 1
        case = CASE.search(body)
        if case is None:
            nonce = NONCE.search(body)
            assert nonce is not None
            writer.write(right(nonce[1].decode(), stream=b'"stream":true' in body))
            return True
        for step in self.scripts[case[1].decode()]:
            if step == CLOSE:
                writer.close()
                await writer.wait_closed()
                return False
            if step == RESET:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                writer.write(step)
                await writer.drain()
        return True
