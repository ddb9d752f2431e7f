"""The front door: one listening socket and the connections that come through it.

It decides nothing about tenants or money: whole requests go to one handler, and what is refused
before goes through one ``refuse``. Not here: a connection's bytes (``gateway.wire.connection``), caps
(``gateway.wire.lobby``).
"""

import asyncio
import socket
from collections.abc import Callable

from gateway.settings import WireSettings
from gateway.wire.connection import Connection
from gateway.wire.cors import Cors
from gateway.wire.deadlines import Wheel
from gateway.wire.lobby import Handler, Lobby, Refuse
from gateway.wire.reply import Reply
from gateway.wire.request import Networks, Request

__all__ = ["Reply", "Request", "Server"]


def _uncounted(_reason: str) -> None:
    pass


class Server:
    """``trusted``: proxies that may name the client; with ``proxy_protocol`` each of their
    connections begins with a PROXY header. ``on_refused(reason)``: before any handler.
    """

    def __init__(
        self,
        settings: WireSettings,
        handler: Handler,
        refuse: Refuse,
        wheel: Wheel,
        trusted: Networks = (),
        *,
        proxy_protocol: bool = False,
        cors: Cors | None = None,
        on_refused: Callable[[str], None] = _uncounted,
    ) -> None:
        self._lobby = Lobby(
            settings,
            handler,
            refuse,
            wheel,
            trusted=trusted,
            proxy_protocol=proxy_protocol,
            cors=cors,
            on_refused=on_refused,
        )
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        return len(self._lobby.members)

    async def serve(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        lobby = self._lobby
        self._server = await loop.create_server(lambda: Connection(lobby), sock=sock, backlog=4096)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def drain(self, deadline_s: float) -> None:
        """Idle connections close now, running ones after their answer; back when all are gone or
        time is out.
        """
        lobby = self._lobby
        lobby.draining = True
        for connection in self._connections():
            connection.close_if_idle()
        if lobby.members and deadline_s > 0:
            lobby.empty.clear()
            try:
                await asyncio.wait_for(lobby.empty.wait(), deadline_s)
            except TimeoutError:
                return

    def close(self) -> None:
        self.stop_accepting()
        for connection in self._connections():
            connection.transport.abort()

    def _connections(self) -> list[Connection]:
        every = (*self._lobby.members, *self._lobby.turned_away)
        return [each for each in every if isinstance(each, Connection)]
