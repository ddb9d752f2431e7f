"""One connection to Redis or Valkey, shared by everything in the loop: a pipelining executor.

Commands of one loop tick leave in one write; replies are matched to callers in order. A caller that
was cancelled or timed out keeps its place in that order and its reply is dropped, so nobody ever
gets another's reply (the fault that once showed ChatGPT users each other's data). While the
connection is down every command fails at once; a task connects again with jittered back-off. Not
here: scripts and keys (``quotas.store.redis``).
"""

import asyncio
import random
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import msgspec

from quotas.errors import QuotaError, StoreUnavailable

CONNECT_TIMEOUT_S = 1.0
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
#: A connection whose oldest command has waited this many timeouts, with no byte back, is given up.
STALLED_TIMEOUTS = 4
#: After a loop that was held up, replies that wait in the socket are read before a call fails.
GRACE_S = 0.002
#: Commands that nobody waits for ride with those of others, this long at most.
GATHER_S = 0.005

Argument = bytes | str | int
#: Gets the reply; an error reply as ``hiredis.ReplyError``; ``StoreUnavailable`` when none came.
Answer = Callable[[object], None]
Command = tuple[Argument, ...]
#: Says commands on a connection that is being made, through the function it is given, which raises
#: ``hiredis.ReplyError``; what it raises itself refuses the connection.
Greeting = Callable[[Callable[[Command], Awaitable[object]]], Awaitable[None]]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a store listens. ``path`` is set for unix sockets, else ``host`` and ``port``."""

    host: str = ""
    port: int = 6379
    path: str = ""
    tls: bool = False
    username: str = ""
    password: str = ""
    db: int = 0

    def greeting(self) -> list[Command]:
        """What is said first on every connection."""
        said: list[Command] = []
        if self.password:
            user = (self.username,) if self.username else ()
            said.append(("AUTH", *user, self.password))
        if self.db:
            said.append(("SELECT", self.db))
        return said


def parse_cluster(url: str) -> list[Target]:
    """Where to ask a cluster first: redis://[user:password@]host[:port][,host[:port]...]?cluster=true.

    Empty where the URL is of one server. Raises ``QuotaError``.
    """
    scheme, _, rest = url.partition("://")
    where, _, query = rest.partition("?")
    if parse_qs(query).get("cluster") != ["true"]:
        if "," in where.rpartition("@")[2]:
            raise QuotaError(
                "the store's URL names several hosts; a cluster's ends in ?cluster=true"
            )
        return []
    login, at, hosts = where.rpartition("@")
    if scheme not in ("redis", "rediss") or "/" in hosts.rstrip("/"):
        raise QuotaError("a cluster's URL must be redis:// or rediss://, and has no database")
    return [parse_url(f"{scheme}://{login}{at}{host}") for host in hosts.rstrip("/").split(",")]


def one_server(url: str) -> str:
    """The URL of a cluster's first host, for what any server of it can do; another URL as it is."""
    if not parse_cluster(url):
        return url
    head, _, rest = url.partition("?")[0].partition(",")
    return head if rest else head.rstrip("/")


def parse_url(url: str) -> Target:
    """redis://[user:password@]host[:port][/db], rediss:// the same, unix://[...]/path[?db=n].

    Raises ``QuotaError``; its text never repeats the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        query = parse_qs(parts.query)
        if parts.scheme == "unix" and parts.path:
            db = int(query.get("db", ["0"])[0])
            path = unquote(parts.path)
            return Target(path=path, username=username, password=password, db=db)
        if parts.scheme in ("redis", "rediss") and parts.hostname:
            db = int(parts.path.strip("/") or query.get("db", ["0"])[0])
            tls = parts.scheme == "rediss"
            return Target(
                host=parts.hostname, port=port, tls=tls, username=username, password=password, db=db
            )
    except ValueError:
        raise QuotaError("the store's URL has a malformed port or database number") from None
    raise QuotaError("the store's URL must be redis://host, rediss://host or unix:///path")


class _Connection(asyncio.Protocol):
    """Bytes to replies, in order. ``lost`` is called once, after every waiting answer."""

    def __init__(self, lost: Callable[["_Connection"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._reader = hiredis.Reader()
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: deque[tuple[Answer, float]] = deque()  # with the time it was sent
        self._unwritten: list[bytes] = []
        self._writing: asyncio.Handle | None = None  # due in this tick
        self._writing_later: asyncio.Handle | None = None
        self._heard_s = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, so this cannot be asserted.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        self._reader.feed(data)
        while True:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError:
                return self.abort()  # bytes that are not replies: no order to trust any more
            if reply is False:
                return None
            if not self._waiting:
                return self.abort()  # a reply to nothing
            self._waiting.popleft()[0](reply)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for answer, _ in waiting:
            answer(StoreUnavailable("the store closed the connection"))
        self._lost(self)

    def send(self, command: Command, answer: Answer, *, later: bool = False) -> None:
        """In this tick's write; ``later``: with the next one, at most ``GATHER_S`` from now."""
        self._waiting.append((answer, self._loop.time()))
        self._unwritten.append(hiredis.pack_command(cast(Any, command)))
        if self._writing is not None:
            return
        if not later:
            self._writing = self._loop.call_soon(self._write)
        elif self._writing_later is None:
            self._writing_later = self._loop.call_later(GATHER_S, self._write)

    def stalled(self, longest_s: float) -> bool:
        """Whether the oldest command waits that long, with no byte heard since."""
        if not self._waiting:
            return False
        return self._loop.time() - max(self._heard_s, self._waiting[0][1]) > longest_s

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        if self._writing_later is not None:
            self._writing_later.cancel()
        self._writing = self._writing_later = None
        unwritten, self._unwritten = self._unwritten, []
        if self._transport is not None:
            self._transport.write(b"".join(unwritten))


async def _say_nothing(_ask: Callable[[Command], Awaitable[object]]) -> None:
    """The greeting of those who have none."""


class Pipeline:
    """Mutable; one event loop. ``greeting`` is said on every new connection, after login.

    ``up`` runs each time the connection stands and has been greeted.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        greeting: Greeting = _say_nothing,
        up: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._greeting = greeting
        self._up = up
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._calls: deque[tuple[float, asyncio.Future[object]]] = deque()  # by when they are due
        self._overdue: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def start(self) -> None:
        """Connect and greet once, then keep connected. Raises ``StoreUnavailable``."""
        first = await self._connect()
        self._connection = first[0]
        self._task = asyncio.create_task(self._keep(first), name="store connection")

    def start_later(self) -> None:
        """Connect in the background, for as long as it takes; nothing where that goes on already."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(None), name="store connection")

    def send(self, command: Command, answer: Answer, *, later: bool = False) -> None:
        """Queue for this tick's write, or ``later`` for the next there is, within ``GATHER_S``. Raises
        ``StoreUnavailable`` while down: nothing was sent.
        """
        if self._connection is None:
            raise StoreUnavailable("the store is not connected")
        self._connection.send(command, answer, later=later)

    async def call(self, command: Command) -> object:
        """The reply. Raises ``StoreUnavailable`` (down, lost, late) or ``hiredis.ReplyError``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        self.send(command, partial(_answer, future))
        self._calls.append((loop.time() + self._timeout_s, future))
        if self._overdue is None:
            self._overdue = loop.call_later(self._timeout_s, self._give_up, loop)
        return await future

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever has waited long enough; one timer for all, since all wait equally long."""
        calls = self._calls
        now_s = loop.time()
        while calls and (calls[0][1].done() or calls[0][0] <= now_s):
            future = calls.popleft()[1]
            if not future.done():
                loop.call_later(GRACE_S, _answer, future, _late())
        self._overdue = loop.call_later(calls[0][0] - now_s, self._give_up, loop) if calls else None

    def reconnect(self) -> None:
        """Drop the connection and make another: what answers there is not what it was."""
        if self._connection is not None:
            self._connection.abort()

    async def close(self) -> None:
        """Drop the connection; what waits for an answer gets ``StoreUnavailable``."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    async def _keep(self, made: tuple[_Connection, asyncio.Event] | None) -> None:
        """Stand by the connection, and connect again whenever it is lost."""
        while True:
            if made is not None:
                connection, lost = made
                try:
                    self._connection = connection
                    self._up()
                    await self._watch(connection, lost)
                finally:
                    self._connection = None
                    connection.abort()
                    # Whoever waits is answered before the next connection may send.
                    await lost.wait()
            backoff_s = FIRST_BACKOFF_S
            while True:
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter
                try:
                    made = await self._connect()
                    break
                except StoreUnavailable:
                    backoff_s = min(LAST_BACKOFF_S, backoff_s * 2)

    async def _watch(self, connection: _Connection, lost: asyncio.Event) -> None:
        stalled_s = self._timeout_s * STALLED_TIMEOUTS
        while not lost.is_set():
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the loss.
                async with asyncio.timeout(self._timeout_s):
                    await lost.wait()
            except TimeoutError:
                if connection.stalled(stalled_s):
                    return

    async def _connect(self) -> tuple[_Connection, asyncio.Event]:
        lost = asyncio.Event()

        def on_lost(gone: _Connection) -> None:
            if self._connection is gone:
                self._connection = None
            lost.set()

        connection: _Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._dial(on_lost)
                await self._greet(connection)
            if lost.is_set():  # it was greeted and gone before this task ran again
                raise StoreUnavailable("the store closed the connection")  # noqa: TRY301
        except BaseException as failure:
            if connection is not None:
                connection.abort()
                await lost.wait()
            if isinstance(failure, (OSError, UnicodeError, StoreUnavailable)):
                raise StoreUnavailable(f"cannot reach the store: {_why(failure)}") from failure
            raise
        return connection, lost

    async def _dial(self, lost: Callable[[_Connection], None]) -> _Connection:
        loop = asyncio.get_running_loop()
        target = self._target
        if target.path:
            _, made = await loop.create_unix_connection(lambda: _Connection(lost), target.path)
            return made
        context = ssl.create_default_context() if target.tls else None
        transport, made = await loop.create_connection(
            lambda: _Connection(lost), target.host, target.port, ssl=context
        )
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made

    async def _greet(self, connection: _Connection) -> None:
        """Log in, in one write, any error reply being a refusal; then say the greeting."""
        replies: asyncio.Queue[object] = asyncio.Queue()
        said = [*self._target.greeting(), ("PING",)]
        for command in said:
            connection.send(command, replies.put_nowait)
        for _ in said:
            reply = await replies.get()
            if isinstance(reply, StoreUnavailable):
                raise reply
            if isinstance(reply, Exception):
                raise StoreUnavailable(f"the store refused: {first_word(reply)}")

        async def ask(command: Command) -> object:
            connection.send(command, replies.put_nowait)
            reply = await replies.get()
            if isinstance(reply, Exception):
                raise reply
            return reply

        await self._greeting(ask)


def _answer(future: "asyncio.Future[object]", reply: object) -> None:
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def _late() -> StoreUnavailable:
    return StoreUnavailable("the store did not answer in time")


def first_word(error: Exception) -> str:
    """Of an error reply (NOAUTH, LOADING): the rest may repeat what was sent."""
    return str(error).split(" ", 1)[0][:32]


def _why(failure: BaseException) -> str:
    if isinstance(failure, TimeoutError):
        return "no answer in time"
    if isinstance(failure, StoreUnavailable):
        return str(failure)
    return type(failure).__name__
