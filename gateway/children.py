"""A child process on a leash, as the supervisor holds it: started, heard, told, seen to end.

Not here: which children there are and when each goes (``gateway.supervisor``); the child's own end
of the leash (``gateway.leash``).
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from gateway.leash import Event

#: Restarts come after 0.1 s, doubling up to 5 s; a life this long forgives the past.
BACK_OFF_S = (0.1, 5.0)
FORGIVEN_AFTER_S = 30.0
LINE_BYTES_MAX = 1 << 16
_HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger("gateway.supervisor")


class _Heard(Event, frozen=True, kw_only=True):
    url: str = ""


def ending(returncode: int) -> str:
    """How a process ended, in words: "SIGKILL" or "exit status 1"."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process without a thread or a poll; its return code."""
    if process.poll() is None:
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, _finish, gone)
        try:
            await gone
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
    return process.wait()


def _finish(gone: asyncio.Future[None]) -> None:
    if not gone.done():
        gone.set_result(None)


class Child:
    """One place for a child: at most one process at a time, restarted in place.

    ``arguments(fd)`` is its command line after the interpreter; ``launch`` the first line it is
    sent; ``pass_fds`` what it inherits. A guest (no ``launch``) has its leash as standard output,
    where it says what it would say to a person: {"event": "ready", "url": ...}.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[int], list[str]],
        launch: bytes,
        pass_fds: tuple[int, ...],
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.ready_detail = ""
        self.version = -1  # of the snapshot, as last told
        self.on_event: Callable[[], None] = lambda: None
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments
        self._launch = launch
        self._pass_fds = pass_fds
        self._leash: socket.socket | None = None
        self._pending = b""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it; returns at once. Signals of the terminal or of systemd reach the supervisor
        alone: the child inherits them blocked and obeys its leash.
        """
        ours, theirs = socket.socketpair()
        self.ready.clear()
        self.version = -1
        self._pending = b""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        leash_fd = theirs.fileno() if self._launch else 1
        try:
            self.process = subprocess.Popen(  # noqa: S603 -- our own module
                [sys.executable, "-m", *self._arguments(leash_fd)],
                stdin=subprocess.DEVNULL,
                # Our own standard output is the ready line's alone.
                stdout=sys.stderr.fileno() if self._launch else theirs.fileno(),
                pass_fds=(*self._pass_fds, theirs.fileno()) if self._launch else (),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 -- the socket API
        self._leash = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)
        if self._launch:
            self._send(self._launch + b"\n")

    def tell(self, event: str) -> None:
        """Send an event down; a child that is gone hears nothing."""
        if self._leash is not None:
            self._send(msgspec.json.encode(Event(event=event)) + b"\n")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    async def wait(self, timeout_s: float | None = None) -> int:
        """Its return code; past ``timeout_s`` it is killed."""
        assert self.process is not None
        try:
            async with asyncio.timeout(timeout_s):
                code = await ended(self.process)
        except TimeoutError:
            _log.warning("%s did not stop in %g s; killed", self.name, timeout_s or 0)
            self.process.kill()
            code = await ended(self.process)
        self.part()
        return code

    async def keep(self, stopping: Callable[[], bool]) -> None:
        """Restart it whenever it ends, with back-off, until ``stopping()``."""
        delay_s = BACK_OFF_S[0]
        while True:
            began_s = time.monotonic()
            code = await self.wait()
            if stopping():
                return
            if time.monotonic() - began_s > FORGIVEN_AFTER_S:
                delay_s = BACK_OFF_S[0]
            _log.error("%s ended (%s); restarting in %g s", self.name, ending(code), delay_s)
            await asyncio.sleep(delay_s)
            if stopping():
                return
            delay_s = min(BACK_OFF_S[1], delay_s * 2)
            self.start()

    def part(self) -> None:
        """Let go of the leash: a child that still lives then stops by itself."""
        if self._leash is not None:
            asyncio.get_running_loop().remove_reader(self._leash)
            self._leash.close()
            self._leash = None

    def _send(self, line: bytes) -> None:
        assert self._leash is not None
        try:
            sent = self._leash.send(line)
        except OSError:
            sent = 0
        if sent < len(line):  # dead, or not reading 200 kB of leash: as good as dead
            self.kill()

    def _hear(self) -> None:
        assert self._leash is not None
        try:
            data = self._leash.recv(LINE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.part()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._obey(line)
        if len(self._pending) > LINE_BYTES_MAX:
            self.kill()

    def _obey(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=_Heard)
        except msgspec.MsgspecError:
            _log.error("%s says what is no event", self.name)
            return
        if event.event == "ready":
            self.ready_detail = event.detail or event.url
            self.ready.set()
        if event.event in {"ready", "version"} and event.detail.isdigit():
            self.version = int(event.detail)
        self.on_event()
