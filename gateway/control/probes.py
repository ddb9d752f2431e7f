"""The prober: asks every endpoint how it is, and tells the data processes what changed.

Each endpoint has a beat of its own: a scrape of its metrics every second, a health probe every two,
jittered, so that a hundred engines are not asked at once. Two failed probes make it unhealthy, one
good one healthy. What an endpoint can do is asked once, and again after its engine restarted: the
question about usage costs tokens, which are counted in ``probe_tokens``. Not here: the questions
(``gateway.control.capabilities``), and what signals mean (``routing``).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import msgspec

from gateway.control.capabilities import (
    ASKS,
    Caller,
    Fetch,
    Probing,
    ask_health,
    ask_metrics,
    ask_models,
    ask_template,
    ask_usage,
    unrecorded,
)
from gateway.link.messages import Signals
from gateway.snapshot import Snapshot
from gateway.wire.fetch import FetchFailed
from routing.exposition import EngineCounters, Exposition
from routing.signals import EndpointSignals
from routing.topology import Endpoint, UsageMode

SCRAPE_EVERY_S = 1.0
HEALTH_EVERY_S = 2.0
UNHEALTHY_AFTER = 2
#: A queue nobody has seen for this long is not known any more.
SCRAPE_AGE_MAX_S = 10.0
#: Pause before a list of models that was not to be had is asked for again.
RELEARN_EVERY_S = 30.0
#: How often endpoints are looked up, and how close together publications may be.
SYNC_EVERY_S = 0.5
PUBLISH_GAP_S = 0.05
_log = logging.getLogger("gateway.control.probes")


class Target(msgspec.Struct, frozen=True):
    """An endpoint, and the names that models served from its pool have at the engine."""

    endpoint: Endpoint
    upstreams: tuple[str, ...]


def targets_in(snapshot: Snapshot) -> list[Target]:
    """Every endpoint of the snapshot."""
    upstreams: dict[int, set[str]] = {}
    for model in snapshot.models.values():
        upstreams.setdefault(model.pool_id, set()).add(model.upstream)
    return [
        Target(endpoint, tuple(sorted(upstreams.get(pool.id, ()))))
        for pool in snapshot.pools.values()
        for endpoint in pool.endpoints
    ]


class _Watch:
    """What is known of one endpoint. ``signals`` is what the others are told."""

    def __init__(self, target: Target, caller: Caller) -> None:
        self.target = target
        self.caller = caller
        self.signals = EndpointSignals(endpoint_id=target.endpoint.id)
        self.counters = EngineCounters()
        self.failures = 0
        self.health_due_s = 0.0
        self.scraped_s = 0.0
        self.learn_due_s = 0.0
        self.models_known = False
        self.usage: dict[str, UsageMode | None] = {}  # upstream name -> asked and answered
        self.beat: asyncio.Task[None] | None = None
        self.learning: asyncio.Task[None] | None = None

    def tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in (self.beat, self.learning) if task is not None]

    def wants_learning(self, now_s: float) -> bool:
        if not self.signals.healthy or now_s < self.learn_due_s:
            return False
        if self.learning is not None and not self.learning.done():
            return False
        return not self.models_known or bool(self.unasked())

    def unasked(self) -> list[str]:
        """Models whose usage is still to be asked for; none where it is configured."""
        endpoint = self.target.endpoint
        if endpoint.usage != "auto" or endpoint.draining:
            return []
        return [name for name in self.target.upstreams if name not in self.usage]


class Prober:
    """One per control process. ``targets`` gives the endpoints of now; ``publish`` gets all signals
    whenever one of them changed. ``chance`` gives a float in [0, 1) for the jitter. ``scraped`` is
    told each scrape by the endpoint's URL; ``probing`` asks what costs tokens.
    """

    def __init__(
        self,
        targets: Callable[[], Iterable[Target]],
        fetch: Fetch,
        publish: Callable[[Signals], None],
        *,
        environ: Mapping[str, str],
        monotonic: Callable[[], float],
        chance: Callable[[], float],
        scrape_every_s: float = SCRAPE_EVERY_S,
        health_every_s: float = HEALTH_EVERY_S,
        scraped: Callable[[str, Exposition], None] | None = None,
        probing: Probing = unrecorded,
    ) -> None:
        self._targets = targets
        self._fetch = fetch
        self._publish = publish
        self._environ = environ
        self._monotonic = monotonic
        self._chance = chance
        self._scrape_every_s = scrape_every_s
        self._health_every_s = health_every_s
        self._scraped = scraped
        self._probing = probing
        self._watches: dict[int, _Watch] = {}
        self._changed = asyncio.Event()
        #: Every endpoint has its beat; before, and for a command without a server, none has.
        self.running = False
        #: Endpoint id -> (prompt, completion) tokens that our own questions cost there.
        self.probe_tokens: dict[int, tuple[int, int]] = {}

    def signals(self) -> dict[int, EndpointSignals]:
        """Endpoint id -> what is known of it now."""
        return {endpoint_id: watch.signals for endpoint_id, watch in self._watches.items()}

    def message(self) -> Signals:
        """Everything, for a data process that just arrived."""
        return Signals(tuple(watch.signals for watch in self._watches.values()))

    def counters(self) -> dict[int, EngineCounters]:
        """Endpoint id -> the engine's own token counters at its last scrape."""
        return {endpoint_id: watch.counters for endpoint_id, watch in self._watches.items()}

    async def run(self) -> None:
        """Probe until cancelled; leaves no task behind."""
        self.running = True
        try:
            while True:
                self._sync()
                try:
                    async with asyncio.timeout(SYNC_EVERY_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                self._changed.clear()
                self._publish(self.message())
                await asyncio.sleep(PUBLISH_GAP_S)
        finally:
            self.running = False
            await self.close()

    async def close(self) -> None:
        """Stop asking; what is known stays known."""
        tasks = [task for watch in self._watches.values() for task in watch.tasks()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self) -> None:
        """Ask every endpoint once how it is, for a command without a server. Costs no tokens."""
        self._sync()
        await asyncio.gather(*(self._look(watch) for watch in self._watches.values()))

    def _sync(self) -> None:
        """Start watching new endpoints, stop watching those that are gone or were redefined."""
        wanted = {target.endpoint.id: target for target in self._targets()}
        for endpoint_id, watch in list(self._watches.items()):
            target = wanted.get(endpoint_id)
            if target is not None and target.endpoint.url == watch.target.endpoint.url:
                self._retarget(watch, target)
                continue
            for task in watch.tasks():
                task.cancel()
            del self._watches[endpoint_id]
            self._changed.set()
        for endpoint_id, target in wanted.items():
            if endpoint_id not in self._watches:
                caller = Caller(target.endpoint, self._fetch, self._environ)
                self._watches[endpoint_id] = _Watch(target, caller)
            watch = self._watches[endpoint_id]
            if self.running and watch.beat is None:  # a sweep may have seen it first
                watch.beat = asyncio.create_task(self._beat(watch), name=f"probe {endpoint_id}")

    def _retarget(self, watch: _Watch, target: Target) -> None:
        """The same engine under changed settings: what is known of it stays known."""
        if target.endpoint != watch.target.endpoint:
            watch.caller = Caller(target.endpoint, self._fetch, self._environ)
        watch.target = target

    async def _beat(self, watch: _Watch) -> None:
        while True:
            await self._walled(watch, self._look)
            if watch.wants_learning(self._monotonic()):
                watch.learning = asyncio.create_task(self._walled(watch, self._learn))
            await asyncio.sleep(self._scrape_every_s * (0.9 + 0.2 * self._chance()))

    async def _walled(self, watch: _Watch, work: Callable[[_Watch], Awaitable[None]]) -> None:
        try:
            await work(watch)
        except Exception:  # noqa: BLE001 -- the wall of a task: one odd engine stops no probe
            _log.exception("probing %s failed", watch.target.endpoint.url)

    async def _look(self, watch: _Watch) -> None:
        """A health probe if it is due, then a scrape of an endpoint that is not known to be down."""
        now_s = self._monotonic()
        if now_s >= watch.health_due_s:
            watch.health_due_s = now_s + self._health_every_s * (0.9 + 0.2 * self._chance())
            self._judge(watch, await ask_health(watch.caller, watch.target.endpoint.dialect))
        if watch.signals.healthy is not False:
            await self._scrape(watch)

    def _judge(self, watch: _Watch, problem: str) -> None:
        url = watch.target.endpoint.url
        watch.failures = watch.failures + 1 if problem else 0
        was = watch.signals.healthy
        if not problem:
            if was is False:
                _log.info("endpoint %s is healthy again", url)
                watch.models_known = False  # another engine may have come back
            self._tell(watch, healthy=True)
        elif watch.failures >= UNHEALTHY_AFTER and was is not False:
            _log.warning("endpoint %s is unhealthy: %s", url, problem)
            self._tell(watch, healthy=False, waiting=None, running=None, kv_used_fraction=None)

    async def _scrape(self, watch: _Watch) -> None:
        seen = await ask_metrics(watch.caller, watch.target.endpoint.dialect)
        now_s = self._monotonic()
        if seen is None:
            if now_s - watch.scraped_s > SCRAPE_AGE_MAX_S:
                self._tell(watch, waiting=None, running=None, kv_used_fraction=None)
            return
        watch.scraped_s = now_s
        before_s, now_started_s = watch.counters.started_s, seen.counters.started_s
        if before_s is not None and now_started_s is not None and now_started_s != before_s:
            _log.info("the engine at %s has restarted", watch.target.endpoint.url)
            watch.models_known = False
            watch.usage.clear()
        watch.counters = seen.counters
        if self._scraped is not None:
            self._scraped(watch.target.endpoint.url, seen)
        self._tell(
            watch,
            waiting=seen.waiting,
            running=seen.running,
            kv_used_fraction=seen.kv_used_fraction,
        )

    async def _learn(self, watch: _Watch) -> None:
        """Contexts of the models, then the usage question, once each per life of the engine."""
        watch.learn_due_s = self._monotonic() + RELEARN_EVERY_S
        try:
            models = await ask_models(watch.caller)
        except FetchFailed:
            return
        watch.models_known = True
        known = {name: length for name, length in models.items() if length is not None}
        self._tell(watch, max_model_len=known)
        if watch.target.endpoint.dialect != "openai":
            asked = [
                (each, await ask_template(watch.caller, each)) for each in watch.target.upstreams
            ]
            added = {name: tokens for name, tokens in asked if tokens is not None}
            self._tell(watch, template_tokens=added)
        for upstream in watch.unasked():
            watch.usage[upstream] = None  # asked: what was sent is not sent twice
            url = watch.target.endpoint.url
            found = await self._probing(url, partial(ask_usage, watch.caller, upstream))
            watch.usage[upstream] = found.mode
            endpoint_id = watch.target.endpoint.id
            prompt, completion = self.probe_tokens.get(endpoint_id, (0, 0))
            self.probe_tokens[endpoint_id] = (
                prompt + found.prompt_tokens,
                completion + found.completion_tokens,
            )
            self._tell(watch, usage=_least(watch.usage.values()))
        if not watch.unasked():
            watch.learn_due_s = 0.0  # a model added later need not wait

    def _tell(self, watch: _Watch, **changes: object) -> None:
        told = msgspec.structs.replace(watch.signals, **changes)
        if told != watch.signals:
            watch.signals = told
            self._changed.set()


def _least(modes: Iterable[UsageMode | None]) -> UsageMode | None:
    """The least that any model of an endpoint reports: what can be relied on for all of them."""
    known = [mode for mode in modes if mode is not None]
    return max(known, key=ASKS.index, default=None)
