"""What the connections of one server share: its rules, and who is in.

Caps in total and per address, under what the process may open. Not here: a connection
(``gateway.wire.connection``), listening and draining (``gateway.wire.server``).
"""

import asyncio
import logging
import resource
from asyncio import Task
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable

from gateway.settings import WireSettings
from gateway.wire.cors import Cors
from gateway.wire.deadlines import Wheel
from gateway.wire.head_cache import HeadCache
from gateway.wire.reply import Reply
from gateway.wire.request import Networks, Request, is_trusted

Handler = Callable[[Request, Reply], Awaitable[None]]
Refuse = Callable[[Exception], tuple[int, list[tuple[bytes, bytes]], bytes]]
#: Of the process's file descriptors, left for the journal, the link, the store and probes.
DESCRIPTORS_KEPT = 256
#: A client's connection may need one to an engine.
DESCRIPTORS_PER_CONNECTION = 2
CONNECTIONS_MIN = 16
#: Refused ones that are told so and given a moment to read it; any more are cut at once.
TURNED_AWAY_MAX = 64
log = logging.getLogger("gateway.wire.lobby")


class Lobby:
    """``connections_max``: the setting, or less where the process may not open so many."""

    def __init__(
        self,
        settings: WireSettings,
        handler: Handler,
        refuse: Refuse,
        wheel: Wheel,
        *,
        trusted: Networks,
        proxy_protocol: bool,
        cors: Cors | None,
        on_refused: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.handler = handler
        self.refuse = refuse
        self.wheel = wheel
        self.trusted = trusted
        self.proxy_protocol = proxy_protocol
        self.cors = cors
        self.on_refused = on_refused
        self.heads = HeadCache(settings)
        self.draining = False
        self.empty = asyncio.Event()
        self.tasks: set[Task[None]] = set()
        self.members: set[Hashable] = set()
        self.turned_away: set[Hashable] = set()
        self.by_address: Counter[str] = Counter()
        room = (descriptors() - DESCRIPTORS_KEPT) // DESCRIPTORS_PER_CONNECTION
        self.connections_max = min(settings.connections_max, max(CONNECTIONS_MIN, room))
        if self.connections_max < settings.connections_max:
            log.info(
                "at most %d connections: the process may open no more files (ulimit -n)",
                self.connections_max,
            )

    def has_room(self) -> bool:
        return len(self.members) < self.connections_max and not self.draining

    def is_proxy(self, address: str) -> bool:
        """Whether a peer is one of ours, behind which many clients may be."""
        return bool(self.trusted) and is_trusted(address, self.trusted)

    def take(self, address: str) -> bool:
        """Count one more connection of a client; False where it has too many."""
        if self.by_address[address] >= self.settings.connections_per_address_max:
            return False
        self.by_address[address] += 1
        return True

    def give_back(self, address: str) -> None:
        self.by_address[address] -= 1
        if self.by_address[address] <= 0:
            del self.by_address[address]

    def left(self, member: Hashable) -> None:
        self.members.discard(member)
        if not self.members:
            self.empty.set()


def descriptors() -> int:
    """How many files the process may have open, raised to what the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    return soft if soft > 0 else 1 << 20
