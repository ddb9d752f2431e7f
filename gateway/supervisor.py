"""The first process of a host: opens the sockets, starts the children, keeps them, stops them.

It imports nothing heavy and holds nothing a request needs, so there is little in it that could die;
if it dies all the same, every child sees its leash end and stops within a second. Stopping goes in
the order data processes, control (which ships their last records), Valkey.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from gateway import __version__
from gateway.children import Child, ended, ending
from gateway.datafolder import DataFolder, RunFile
from gateway.embedded import Chosen, choose_store, start_valkey
from gateway.leash import Launch
from gateway.settings import Settings
from gateway.sockets import listen_shared, listen_unix, url_of

START_S = 30.0
#: Beyond drain_s: error events go out, and settlements are waited for 5 s.
DATA_STOP_MARGIN_S = 8.0
CONTROL_STOP_S = 10.0
VALKEY_STOP_S = 5.0
_log = logging.getLogger("gateway.supervisor")


class StartFailed(Exception):
    """The host did not come up; the message says what to look at."""


class Supervisor:
    """``run`` is its life. Guests are further children (the demo engine) by name and arguments.

    ``modules`` are what control and data processes run. Making it takes the folder's lock and the ports, and may raise ``FolderError``, ``PortTaken``
    or ``StoreRefused``.
    """

    def __init__(
        self,
        settings: Settings,
        guests: Sequence[tuple[str, list[str]]] = (),
        modules: tuple[str, str] = ("gateway.controlplane", "gateway.dataplane"),
    ) -> None:
        os.umask(0o077)
        self._modules = modules
        self.folder = DataFolder(settings.data_dir)
        self.settings = msgspec.structs.replace(settings, data_dir=str(self.folder.path))
        self.folder.make()
        self._lock_fd = self.folder.lock()
        self._socket_dir = self.folder.socket_dir()
        self._store: Chosen = choose_store(settings, self._socket_dir)
        self._data_sockets = listen_shared(settings.host, settings.port, settings.processes, "port")
        (self._control_socket,) = listen_shared(
            settings.control_host, settings.control_port, 1, "control-port"
        )
        self._link_socket = listen_unix(self._socket_dir / "link.sock")
        self._pepper = self.folder.pepper(settings.pepper)
        self.run_file = RunFile(
            base_url=url_of(self._data_sockets[0]) + "/v1",
            control_url=url_of(self._control_socket),
            operator_token=self.folder.operator_token(),
            pid=os.getpid(),
            store=self._store.name,
            version=__version__,
        )
        self.control = self._control_child()
        self.data = [self._data_child(slot) for slot in range(settings.processes)]
        self.guests = [_guest(name, arguments) for name, arguments in guests]
        self._valkey: subprocess.Popen[bytes] | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._stop_asked = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, announce: Callable[[], Awaitable[None]]) -> int:
        """Start, ``announce()`` when every child is ready, serve until a signal; the exit status.

        ``announce`` may talk to the host already; an exception of its ends the run.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            self._start_all()
            begun = asyncio.create_task(self._begin(announce))
            asked = asyncio.create_task(self._stop_asked.wait())
            await asyncio.wait((begun, asked), return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                begun.cancel()
                await asyncio.gather(begun, return_exceptions=True)
            else:
                begun.result()
            await asked
        finally:
            self._stopping = True
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            await self._stop_all()
            self._close()
        return 1 if self._stop_now.is_set() else 0

    async def wait_for_version(self, version: int) -> None:
        """Until every data process holds the snapshot's ``version``."""
        changed = asyncio.Event()
        for child in self.data:
            child.on_event = changed.set
        while any(child.version < version for child in self.data):
            changed.clear()
            await changed.wait()

    # -- starting ----------------------------------------------------------------------------

    def _launch(self, role: str, slot: int, listening: socket.socket) -> Launch:
        return Launch(
            role="control" if role == "control" else "data",
            settings=self.settings,
            slot=slot,
            listen_fd=listening.fileno(),
            lock_fd=self._lock_fd,
            link_path=str(self._socket_dir / "link.sock"),
            link_fd=self._link_socket.fileno() if role == "control" else -1,
            store_url=self._store.url,
            store_name=self._store.name,
            pepper=self._pepper,
            operator_token=self.run_file.operator_token if role == "control" else "",
            base_url=self.run_file.base_url,
            control_url=self.run_file.control_url,
        )

    def _control_child(self) -> Child:
        launch = self._launch("control", -1, self._control_socket)
        fds = (launch.listen_fd, launch.lock_fd, launch.link_fd)
        return Child(
            "control", partial(_module, self._modules[0]), msgspec.json.encode(launch), fds
        )

    def _data_child(self, slot: int) -> Child:
        launch = self._launch("data", slot, self._data_sockets[slot])
        fds = (launch.listen_fd, launch.lock_fd)
        return Child(
            f"data process {slot}",
            partial(_module, self._modules[1]),
            msgspec.json.encode(launch),
            fds,
        )

    def _start_all(self) -> None:
        """Everything at once: each child waits for what it needs by itself."""
        self._start_valkey()
        for child in (self.control, *self.data, *self.guests):
            child.start()

    def _start_valkey(self) -> None:
        if self._store.binary is not None:
            self._valkey = start_valkey(
                self._store.binary, self.folder.path, self._socket_dir, self._lock_fd
            )

    async def _begin(self, announce: Callable[[], Awaitable[None]]) -> None:
        children = (self.control, *self.data, *self.guests)
        ready = asyncio.create_task(_all_ready(children))
        watched = [ready, *(asyncio.create_task(_unexpected_end(child)) for child in children)]
        try:
            done, _ = await asyncio.wait(
                watched, timeout=START_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()  # raises for a child that ended
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)
        if not done:
            late = ", ".join(child.name for child in children if not child.ready.is_set())
            raise StartFailed(f"{late} not ready within {START_S:g} s; see the log above")
        self._keep_all()
        self.folder.write_run(self.run_file)
        await announce()

    # -- keeping -----------------------------------------------------------------------------

    def _keep_all(self) -> None:
        for child in (self.control, *self.data, *self.guests):
            self._keepers.append(asyncio.create_task(child.keep(lambda: self._stopping)))
        if self._valkey is not None:
            self._keepers.append(asyncio.create_task(self._keep_valkey()))

    async def _keep_valkey(self) -> None:
        while self._valkey is not None:
            code = await ended(self._valkey)
            _log.error("%s ended (%s); restarting", self._store.name, ending(code))
            await asyncio.sleep(0.1)  # no faster: a server that cannot start must not spin
            self._start_valkey()

    # -- stopping ----------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            self._stop_now.set()
        self._stop_asked.set()

    async def _stop_all(self) -> None:
        stop = asyncio.create_task(self._stop_in_order())
        now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((stop, now), return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            for child in (*self.data, self.control, *self.guests):
                child.kill()
        now.cancel()
        await asyncio.gather(stop, now, return_exceptions=True)

    async def _stop_in_order(self) -> None:
        for sock in self._data_sockets:
            sock.close()  # with the child's own copy gone, a connect is refused, not left hanging
        drain_s = self.settings.drain_s + DATA_STOP_MARGIN_S
        await _stop(self.data, drain_s)
        await _stop([self.control], CONTROL_STOP_S)
        await _stop(self.guests, CONTROL_STOP_S)
        if self._valkey is not None:
            self._valkey.terminate()
            try:
                async with asyncio.timeout(VALKEY_STOP_S):
                    await ended(self._valkey)
            except TimeoutError:
                self._valkey.kill()
                await ended(self._valkey)

    def _close(self) -> None:
        self.folder.remove_run()
        for sock in (*self._data_sockets, self._control_socket, self._link_socket):
            sock.close()
        self.folder.leave_socket_dir()
        os.close(self._lock_fd)


def _module(name: str, fd: int) -> list[str]:
    return [name, str(fd)]


def _guest(name: str, arguments: list[str]) -> Child:
    """A guest's arguments name its leash as ``{leash}``."""
    return Child(name, lambda fd: [each.replace("{leash}", str(fd)) for each in arguments], b"", ())


async def _all_ready(children: Sequence[Child]) -> None:
    for child in children:
        await child.ready.wait()


async def _unexpected_end(child: Child) -> None:
    assert child.process is not None
    code = await ended(child.process)
    raise StartFailed(f"{child.name} ended at start ({ending(code)}); see the log above")


async def _stop(children: Sequence[Child], timeout_s: float) -> None:
    for child in children:
        child.tell("drain")
    await asyncio.gather(*(child.wait(timeout_s) for child in children if child.process))
