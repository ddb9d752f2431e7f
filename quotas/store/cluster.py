"""A cluster of Redis or Valkey servers as one: each key's step goes to the server that has its slot.

Every tenant's keys share a hash tag, so a step is one server's. ``MOVED`` and ``ASK`` are followed; the
table of slots is read again when a server says that one moved, and while one is away. Each server has a
connection of its own, with its own timeouts: one that is away fails its own tenants' calls at once and
keeps its own jobs, and the others go on. Not here: one server (``quotas.store.server``).

The specification: https://valkey.io/topics/cluster-spec (redirection, hash tags).
"""

import asyncio
import binascii
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import cast

import hiredis
import msgspec

from quotas.errors import StoreUnavailable
from quotas.store.pipeline import Argument, Pipeline, Target, first_word
from quotas.store.server import Job, Server
from quotas.store.steps import Step

SLOTS = 16_384
#: A step is sent so often, to whichever server, before its error is the answer.
TRIES_MAX = 16
TRY_AGAIN_S = 0.02
#: Between two readings of the table while a server is away, and else.
UNSETTLED_S = 0.5
SETTLED_S = 30.0
_KNOWN_SLOTS = 65_536


def slot_of(key: str) -> int:
    """CRC16 of the hash tag: what stands between the first { and the next }, where there is such."""
    start = key.find("{")
    end = key.find("}", start + 2)
    tag = key[start + 1 : end] if -1 < start < end else key
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Cluster:
    """Mutable; one event loop. As ``Server``, over all of them. ``seeds``: where to ask first."""

    def __init__(
        self,
        seeds: Sequence[Target],
        *,
        timeout_s: float,
        acknowledged: Callable[[Job, object], None],
        up: Callable[[], None],
    ) -> None:
        self._seeds = seeds
        self._timeout_s = timeout_s
        self._acknowledged = acknowledged
        self._up = up
        self._servers: dict[tuple[str, int], Server] = {}
        self._owners: list[Server | None] = [None] * SLOTS
        self._slots: dict[str, int] = {}
        self._homeless: list[Job] = []  # of a slot that nobody has
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ready(self, key: str) -> bool:
        """Whether the server that has the key's slot is connected."""
        server = self._owner(key)
        return server is not None and server.connected

    def part(self, key: str) -> str:
        """The name of the server that has a key's slot; "" where nobody has it."""
        server = self._owner(key)
        return server.name if server is not None else ""

    def reached(self, key: str) -> bool:
        """Whether the server that has the key's slot ever answered."""
        server = self._owner(key)
        return server is not None and server.reached(key)

    async def start(self) -> None:
        """Read the table and connect to every server in it, later to those that are not there.

        Raises ``StoreUnavailable``.
        """
        await self._read_table()
        for server in _distinct(self._owners):
            try:
                await server.start()
            except StoreUnavailable:
                server.start_later()
        self._task = asyncio.create_task(self._keep_table(), name="store slots")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def call(self, step: Step, keys: Sequence[str], arguments: Sequence[Argument]) -> object:
        """The reply. Raises ``StoreUnavailable`` or ``hiredis.ReplyError``."""
        server = self._owner(keys[0])
        if server is None:
            raise StoreUnavailable("no server of the cluster has the slot")
        try:
            return await server.call(step, keys, arguments)
        except hiredis.ReplyError as error:
            failure = error
        async with _within(self._timeout_s):
            asking = False
            for _ in range(TRIES_MAX):
                redirected = self._redirected(keys[0], failure)
                if redirected is not None:
                    server, asking = redirected
                elif first_word(failure) == "TRYAGAIN":  # its keys are on their way, some are there
                    await asyncio.sleep(TRY_AGAIN_S)
                else:
                    break
                try:
                    return await server.call(step, keys, arguments, asking=asking)
                except hiredis.ReplyError as error:
                    failure = error
        raise failure

    async def ping(self, part: str | None = None) -> None:
        """Every server that has slots, or the one of that name.

        Raises ``StoreUnavailable`` or ``hiredis.ReplyError``.
        """
        if part is None and None not in self._owners:
            await asyncio.gather(*(server.ping() for server in _distinct(self._owners)))
            return None
        for server in self._servers.values():
            if server.name == part:
                return await server.ping()
        raise StoreUnavailable("no server of the cluster has the slot")

    def tell(self, step: Step, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """Send once, if connected; whatever the reply."""
        server = self._owner(keys[0])
        if server is not None:
            server.tell(step, keys, arguments)

    def queue(self, job: Job) -> None:
        server = self._owner(job.keys[0])
        if server is None:
            self._homeless.append(job)
            self._moved.set()
        else:
            server.queue(job)

    def _owner(self, key: str) -> Server | None:
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _KNOWN_SLOTS:
                self._slots.clear()
            slot = self._slots[key] = slot_of(key)
        return self._owners[slot]

    def _redirected(self, key: str, error: hiredis.ReplyError) -> tuple[Server, bool] | None:
        """Where an error says that the step belongs, and whether it must be asked for there."""
        word, _, rest = str(error).partition(" ")
        if word not in ("MOVED", "ASK"):
            return None
        host, _, port = rest.rpartition(" ")[2].rpartition(":")
        server = self._server(host or self._seeds[0].host, int(port))
        server.start_later()
        if word == "MOVED":
            self._owners[slot_of(key)] = server
            self._moved.set()
        return server, word == "ASK"

    def _failed(self, job: Job, reply: Exception) -> bool:
        """Whether a job that failed at a server belongs to another one now, which has it then."""
        job.asking = False
        redirected = None
        if isinstance(reply, hiredis.ReplyError):
            redirected = self._redirected(job.keys[0], reply)
        if redirected is None:
            return False
        server, job.asking = redirected
        server.queue(job)
        return True

    def _server(self, host: str, port: int) -> Server:
        known = self._servers.get((host, port))
        if known is None:
            target = msgspec.structs.replace(self._seeds[0], host=host, port=port)
            known = self._servers[host, port] = Server(
                target,
                timeout_s=self._timeout_s,
                acknowledged=self._acknowledged,
                up=self._up,
                failed=self._failed,
                name=f"{host}:{port}",
            )
        return known

    async def _keep_table(self) -> None:
        """Read the table again when something moved, and now and then."""
        while True:
            settled = None not in self._owners and all(
                server.connected for server in _distinct(self._owners)
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLED_S if settled else UNSETTLED_S):
                    await self._moved.wait()
                    await asyncio.sleep(self._timeout_s)  # many slots move at a time
            self._moved.clear()
            with contextlib.suppress(StoreUnavailable):
                await self._read_table()

    async def _read_table(self) -> None:
        """From the first that tells. Raises ``StoreUnavailable``."""
        failure = StoreUnavailable("no server of the cluster answers")
        servers = {(seed.host, seed.port): seed for seed in self._seeds}
        for host, port in self._servers:
            servers[host, port] = msgspec.structs.replace(self._seeds[0], host=host, port=port)
        for target in servers.values():
            try:
                self._adopt(target, await _table(target, self._timeout_s))
            except StoreUnavailable as error:
                failure = error
            else:
                return
        raise failure

    def _adopt(self, told_by: Target, table: Sequence[Sequence[object]]) -> None:
        """Take over who has which slots; a server that has none any more hands on its jobs."""
        owners: list[Server | None] = [None] * SLOTS
        for first, last, primary, *_ in cast("Sequence[tuple[int, int, list[bytes | int]]]", table):
            host, port = cast("tuple[bytes | None, int]", primary[:2])
            server = self._server(host.decode() if host else told_by.host, port)
            owners[first : last + 1] = [server] * (last - first + 1)
        before, self._owners = _distinct(self._owners), owners
        now = _distinct(owners)
        if self._task is not None:
            for server in now:
                server.start_later()
        homeless, self._homeless = self._homeless, []
        for server in before - now:
            homeless += server.take_unsent()
        for job in homeless:
            self.queue(job)


def _distinct(owners: Iterable[Server | None]) -> set[Server]:
    return {server for server in owners if server is not None}


async def _table(target: Target, timeout_s: float) -> Sequence[Sequence[object]]:
    """``CLUSTER SLOTS``, on a connection of its own: of a replica too, which no step could use."""
    pipeline = Pipeline(target, timeout_s=timeout_s)
    await pipeline.start()
    try:
        return cast("Sequence[Sequence[object]]", await pipeline.call(("CLUSTER", "SLOTS")))
    except hiredis.ReplyError as error:
        raise StoreUnavailable(f"the store answered {first_word(error)}") from None
    finally:
        await pipeline.close()


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StoreUnavailable("the store did not answer in time") from None
