"""One Redis or Valkey server: steps that are awaited, and steps that are sent until acknowledged.

Jobs (settle, release, expire: each acts once, however often it arrives) are sent in the tick they are
queued in, and sent again on every new connection until acknowledged; so many at once that a backlog
after an outage does not stand before admissions. Not here: which steps and keys
(``quotas.store.redis``), bytes (``quotas.store.pipeline``).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import hiredis

from quotas.errors import StoreUnavailable
from quotas.store.pipeline import Argument, Pipeline, Target, first_word
from quotas.store.steps import LIBRARY, Ask, Step, is_forgotten

#: Jobs in flight at once.
WINDOW = 256
#: An error reply (loading, read-only, out of memory) is a state that passes; ask again after this.
RETRY_S = 0.25
#: Before a step of a slot that is on its way to this server.
ASKING = ("ASKING",)


class Job:
    """A step that is sent until it is acknowledged. ``asking``: of a slot that is being moved."""

    __slots__ = ("arguments", "asking", "done", "keys", "queued_s", "step")

    def __init__(
        self,
        step: Step,
        keys: list[str],
        arguments: tuple[Argument, ...],
        done: Callable[[], None] | None,
    ) -> None:
        self.step = step
        self.keys = keys
        self.arguments = arguments
        self.done = done
        self.asking = False
        self.queued_s = time.monotonic()


def _stays(_job: Job, _reply: Exception) -> bool:
    """A job that failed at the only server there is."""
    return False


class Server:
    """Mutable; one event loop. ``acknowledged`` gets each job's reply, ``up`` runs when connected.
    ``failed`` hears of each job that was not acknowledged, and whether it takes it elsewhere.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        acknowledged: Callable[[Job, object], None],
        up: Callable[[], None],
        failed: Callable[[Job, Exception], bool] = _stays,
        name: str = "",
    ) -> None:
        self.name = name
        self._reached = False
        self._acknowledged = acknowledged
        self._failed = failed
        self._up = up
        self._scripted = False
        self._pipeline = Pipeline(target, timeout_s=timeout_s, greeting=self._greet, up=self._on_up)
        self._unsent: deque[Job] = deque()
        self._in_flight = 0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        return self._pipeline.connected

    def ready(self, _key: str) -> bool:
        """Whether a step of the key would be sent: all keys are this server's."""
        return self._pipeline.connected

    def part(self, _key: str) -> str:
        """The name of the server that has a key's slot."""
        return self.name

    def reached(self, _key: str) -> bool:
        """Whether it ever answered."""
        return self._reached

    async def start(self) -> None:
        """Connect and load the steps. Raises ``StoreUnavailable``."""
        await self._pipeline.start()

    def start_later(self) -> None:
        """Connect in the background, as soon as the server is there; once."""
        self._pipeline.start_later()

    def take_unsent(self) -> list[Job]:
        """The jobs that wait here, for whoever has their keys now."""
        unsent = list(self._unsent)
        self._unsent.clear()
        return unsent

    async def close(self) -> None:
        self._unsent.clear()
        await self._pipeline.close()
        if self._retry is not None:
            self._retry.cancel()
        self._unsent.clear()

    async def call(
        self,
        step: Step,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        asking: bool = False,
    ) -> object:
        """The reply. Raises ``StoreUnavailable`` or ``hiredis.ReplyError``."""
        tries = 2
        while True:
            if asking and self._pipeline.connected:
                self._pipeline.send(ASKING, _ignore)
            command = step.command(keys, arguments, scripted=self._scripted)
            try:
                return await self._pipeline.call(command)
            except hiredis.ReplyError as error:
                tries -= 1
                if not tries or not self._note(error):
                    raise

    async def ping(self, _part: str | None = None) -> None:
        """Raises ``StoreUnavailable`` or ``hiredis.ReplyError``."""
        await self._pipeline.call(("PING",))

    def tell(self, step: Step, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """Send once, if connected; whatever the reply."""
        if self._pipeline.connected:
            command = step.command(keys, arguments, scripted=self._scripted)
            self._pipeline.send(command, _ignore)

    def queue(self, job: Job) -> None:
        self._unsent.append(job)
        self._pump()

    def _pump(self) -> None:
        """Send what the window and the connection allow."""
        while self._unsent and self._in_flight < WINDOW and self._pipeline.connected:
            job = self._unsent.popleft()
            self._in_flight += 1
            command = job.step.command(job.keys, job.arguments, scripted=self._scripted)
            try:
                if job.asking:
                    self._pipeline.send(ASKING, _ignore)
                self._pipeline.send(command, partial(self._answered, job), later=True)
            except StoreUnavailable as lost:
                self._answered(job, lost)
                return

    def _answered(self, job: Job, reply: object) -> None:
        self._in_flight -= 1
        if isinstance(reply, Exception):
            if self._failed(job, reply):
                self._pump()
                return
            self._unsent.append(job)
            if isinstance(reply, hiredis.ReplyError):
                self._note(reply)
                self._retry_soon()
            return
        self._acknowledged(job, reply)
        if self._unsent:
            self._pump()

    def _note(self, error: hiredis.ReplyError) -> bool:
        """Whether the step may be sent again at once: what the server forgot is on its way."""
        if (
            first_word(error) == "READONLY"
        ):  # a failover left us with a replica; the name may know more
            self._pipeline.reconnect()
        if not is_forgotten(error) or not self._pipeline.connected:
            return False
        for command in LIBRARY.commands(scripted=self._scripted):
            self._pipeline.send(command, _ignore)
        return True

    async def _greet(self, ask: Ask) -> None:
        self._scripted = await LIBRARY.greet(ask)

    def _on_up(self) -> None:
        self._reached = True
        self._up()
        self._pump()

    def _retry_soon(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._pump()


def _ignore(reply: object) -> None:
    """A renewal that failed: the next one is soon enough."""
