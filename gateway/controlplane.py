"""The composition root of the control process: the only writer of SQL, off every request's path.

Run by the supervisor as ``python -m gateway.controlplane LEASH_FD``. It feeds the data processes,
ships their journals, probes engines and serves the admin API; when it is away, inference goes on.
``offline`` is the same without processes, for a command that finds no live server. Not here: what
any part does.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator

import msgspec
import uvicorn
from starlette.applications import Starlette

from gateway.control.core import ControlFailed, Core
from gateway.datafolder import DataFolder
from gateway.leash import Event, Launch, Leash
from gateway.link.messages import Counters
from gateway.link.server import Peer
from gateway.settings import Settings
from gateway.telemetry.access import configure_logging
from quotas.errors import StoreUnavailable
from quotas.store.redis import RedisStore

#: A batch of records is ten thousands of objects; collecting amid them finds nothing.
GC_THRESHOLDS = (50_000, 20, 50)
SHIP_EVERY_S = 0.25
STORE_RETRY_S = 0.25
#: An admin request in flight gets this long when the host stops.
HTTP_STOP_S = 2
#: A store that is not there: offline, what journals owe it waits for the next server.
NOWHERE = "unix:///nonexistent/valkey.sock"
log = logging.getLogger("gateway.controlplane")


class ControlPlane:
    """One control process, from launch to drain."""

    def __init__(self, launch: Launch, leash: Leash) -> None:
        self._launch = launch
        self._leash = leash
        self._store = (
            RedisStore(launch.store_url, name=launch.store_name, owner=f"control-{os.getpid()}")
            if launch.store_url
            else None
        )
        self._core = Core(
            launch.settings,
            pepper=launch.pepper,
            operator_token=launch.operator_token,
            store=self._store,
            reachable_store=self._store,
            environ=os.environ,
            host_pid=os.getppid(),
        )
        self._http = _Http(
            uvicorn.Config(
                self._core.app(),
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=HTTP_STOP_S,
            )
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._drain_asked = False

    async def run(self) -> int:
        """Serve until the supervisor says drain or is gone; the exit status."""
        core = self._core
        self._spawn(self._leash.watch(self._on_drain, self._over.set), "leash")
        try:
            await core.open()
        except ControlFailed as error:
            log.error("%s", error)  # noqa: TRY400 -- a sentence for an operator, no traceback
            await self._close()
            return 1
        core.link.handlers.update(
            hello=self._on_hello,
            version=core.feed.on_version,
            counters=self._on_counters,
            read=core.reads.on_read,
            explained=core.explanations.on_explained,
            balances=core.balances.on_asked,
            reheld=core.balances.on_reheld,
        )
        core.link.on_parted = self._on_parted
        await core.link.serve(socket.socket(fileno=self._launch.link_fd))
        if self._store is not None:
            self._spawn(self._join_store(self._store), "store")
        self._spawn(core.feed.run(), "feed")
        if core.announcements is not None:
            self._spawn(core.announcements.run(), "announcements")
        self._spawn(core.shipper.run(SHIP_EVERY_S), "shipper")
        self._spawn(core.prober.run(), "prober")
        self._spawn(core.reconciler.run(), "reconciler")
        self._spawn(core.purses.run(), "purses")
        self._spawn(core.deliveries.run(), "deliveries")
        self._spawn(core.alerts.run(), "alerts")
        self._spawn(core.almanac.run(), "almanac")
        self._spawn(self._http.run(socket.socket(fileno=self._launch.listen_fd)), "http")
        await self._http.listening.wait()
        settle_memory()
        self._leash.tell(Event(event="ready"))
        await self._over.wait()
        if self._drain_asked:
            await core.ship_the_rest()
        await self._close()
        return 0

    async def _close(self) -> None:
        self._http.should_exit = True
        for task in self._tasks:
            if task.get_name() != "http":
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._core.close()
        self._leash.close()

    async def _join_store(self, store: RedisStore) -> None:
        """The store may come up after us; until then what is owed to it waits."""
        while True:
            try:
                await store.start()
            except StoreUnavailable:
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    # -- the link ----------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, body: bytes) -> None:
        self._core.feed.on_hello(peer, body)
        self._core.purses.behind = True  # it may have missed a credit
        peer.send("signals", msgspec.msgpack.encode(self._core.prober.message()))

    def _on_counters(self, _peer: Peer, body: bytes) -> None:
        self._core.totals.take(msgspec.msgpack.decode(body, type=Counters))

    def _on_parted(self, peer: Peer) -> None:
        self._core.feed.on_parted(peer)
        if peer.hello is not None:
            self._core.totals.leave(peer.hello.slot, peer.hello.pid)

    # -- life --------------------------------------------------------------------------------

    def _on_drain(self) -> None:
        self._drain_asked = True
        self._over.set()

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task %s died", task.get_name(), exc_info=task.exception())
            self._over.set()  # the supervisor starts another control process


def settle_memory() -> None:
    """What is there once all is imported stays, and is looked through no more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Http(uvicorn.Server):
    """Without signal handlers: the leash says when to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:  # type: ignore[override]
        await self.serve([sock])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def offline(settings: Settings, folder: DataFolder) -> AsyncIterator[Starlette]:
    """The admin application over a folder whose lock the caller holds; raises ``ControlFailed``.

    A configured Redis is settled with as usual; what is owed to a Valkey of our own, which does not
    run now, waits in the journals.
    """
    store, reachable = _offline_store(settings)
    core = Core(
        msgspec.structs.replace(settings, data_dir=str(folder.path)),
        pepper=folder.pepper(settings.pepper),
        operator_token=folder.operator_token(),
        store=store,
        reachable_store=reachable,
        environ=os.environ,
        host_pid=os.getpid(),
    )
    if reachable is not None:
        with contextlib.suppress(StoreUnavailable):
            await reachable.start()
    try:
        await core.open()
        yield core.app()
    finally:
        await core.close()


def _offline_store(settings: Settings) -> tuple[RedisStore | None, RedisStore | None]:
    if settings.store == "memory":
        return None, None
    url = settings.redis_url
    store = RedisStore(url or NOWHERE, name="redis", owner=f"offline-{os.getpid()}")
    return store, store if url else None


async def _main(leash_fd: int) -> int:
    leash = Leash(leash_fd)
    launch = await leash.open()
    configure_logging(launch.settings.log_level)
    try:
        plane = ControlPlane(launch, leash)
    except ControlFailed as error:
        log.error("%s", error)  # noqa: TRY400 -- a sentence for an operator, no traceback
        return 1
    return await plane.run()


def main() -> None:
    """The process's entry; exits 0 after a drain."""
    sys.exit(asyncio.run(_main(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
