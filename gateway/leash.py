"""The leash: the socket pair between the supervisor and each child it starts.

Down it goes one ``Launch`` line, later ``drain``; up come ``ready`` and free-form events. Its end of
file is the other side's death: a child then stops within a second, so a killed supervisor leaves
no process. Lines are JSON. Not the link, which joins data processes to control.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Literal

import msgspec

from gateway.settings import Settings


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told once. File descriptors are inherited under the same numbers."""

    role: Literal["data", "control"]
    settings: Settings
    slot: int  # 0.. for data processes; -1 for control
    listen_fd: int
    lock_fd: int  # keeps the data folder's lock until the last child is gone
    link_path: str  # unix socket of the link
    link_fd: int = -1  # control: the listening end of the link
    store_url: str | None  # None = the in-process store
    store_name: str
    pepper: str
    operator_token: str = ""  # control only
    base_url: str
    control_url: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line either way: "ready", "drain", "version" (detail = snapshot version held)."""

    event: str
    detail: str = ""


class Leash:
    """A child's end. ``on_drain`` runs on a drain line, ``on_parted`` when the supervisor is gone."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> Launch:
        """The launch line; raises ``EOFError`` when the supervisor died first."""
        self._socket.setblocking(False)  # noqa: FBT003 -- the socket API
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self._socket, limit=1 << 20
        )
        line = await self._reader.readline()
        if not line:
            raise EOFError("the supervisor is gone")
        return msgspec.json.decode(line, type=Launch)

    async def watch(self, on_drain: Callable[[], None], on_parted: Callable[[], None]) -> None:
        assert self._reader is not None
        # Reset, not ended: the supervisor died before it had read all that we told it.
        with contextlib.suppress(ConnectionResetError):
            while line := await self._reader.readline():
                if msgspec.json.decode(line, type=Event).event == "drain":
                    on_drain()
        on_parted()

    def tell(self, event: Event) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        else:
            self._socket.close()
