"""The answering side of one request to the demo engine: HTTP/1.1 as uvicorn writes it."""

import asyncio
import json


class Answer:
    """``dead``: the connection must not be used again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.dead = False

    def send(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else compact(body)
        head = (
            f"HTTP/1.1 {status} Demo\r\nserver: demo\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)

    def start(self) -> None:
        self._writer.write(
            b"HTTP/1.1 200 OK\r\nserver: demo\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def event(self, value: object) -> None:
        self._chunk(b"data: " + compact(value) + b"\n\n")

    def done(self) -> None:
        self._chunk(b"data: [DONE]\n\n")
        self._writer.write(b"0\r\n\r\n")

    def die(self) -> None:
        self.dead = True
        self._writer.transport.abort()

    async def drain(self) -> None:
        await self._writer.drain()

    async def left(self) -> None:
        """Returns when the client closes. One that sends ahead of its turn is left too."""
        await self._reader.read(1)

    def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
