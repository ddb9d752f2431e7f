"""A receiver of events on a real socket of loopback, that does what a test says with each request."""

import asyncio
import contextlib
import json
from collections.abc import Callable

import msgspec


class Request(msgspec.Struct, frozen=True):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        """CloudEvents of a single or a batch request."""
        found = self.json
        return found if isinstance(found, list) else [found]


class Receiver:
    """``answer(request)`` gives a status, ``(status, headers, body)``, ``"hang"`` (reads and says
    nothing) or ``"cut"`` (reads, keeps what it read, and closes). ``kept``: what it took in.
    """

    def __init__(self, answer: Callable = lambda _request: 204) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.kept: list[Request] = []
        self.port = 0
        self._server = None
        self._open: set[asyncio.Task] = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/in"

    @property
    def events(self):
        """Every event of every request that was taken in, in the order they came."""
        return [event for request in self.kept for event in request.events]

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        """Refuse connections until started again."""
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._open.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._one(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in (each.partition(": ") for each in lines if each)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(line.split()[1], headers, body)
        self.requests.append(request)
        said = self.answer(request)
        if said == "hang":
            await reader.read()
            return
        if said == "cut":
            self.kept.append(request)
            return
        status, extra, text = said if isinstance(said, tuple) else (said, {}, b"")
        if 200 <= status < 300:
            self.kept.append(request)
        more = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        length = "" if status == 204 else f"content-length: {len(text)}\r\n"
        writer.write(f"HTTP/1.1 {status} Said\r\n{length}{more}\r\n".encode() + text)
        await writer.drain()


@contextlib.asynccontextmanager
async def receiving(answer: Callable = lambda _request: 204):
    made = await Receiver(answer).start()
    try:
        yield made
    finally:
        await made.stop()
