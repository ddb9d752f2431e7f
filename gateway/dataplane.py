"""The composition root of a data process: builds every part once, joins them, drains them.

Run by the supervisor as ``python -m gateway.dataplane LEASH_FD``. Imports no SQL, no web framework,
no metrics library: an import contract proves it. Not here: what any part does.
"""

import asyncio
import gc
import logging
import os
import random
import secrets
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from time import time, time_ns

import msgspec
import uvloop

from gateway import __version__
from gateway.admission import Admission
from gateway.authentication import Authentication
from gateway.balances import Balances
from gateway.cache_salts import cache_salts
from gateway.call import Call, id_headers
from gateway.ceilings import Ceilings
from gateway.census import Census
from gateway.claims import Claims
from gateway.contract.envelope import Bounds
from gateway.contract.errors import Draining
from gateway.engine_counts import ASK_S, EngineCounts
from gateway.engines import Engines, process_environ
from gateway.errors import answer
from gateway.explain import Asked, Explainer
from gateway.forward import Forwarder
from gateway.inference import Inference
from gateway.intake import Intake
from gateway.leases import Leases
from gateway.leash import Event, Launch, Leash
from gateway.link.client import LinkClient
from gateway.link.messages import Counters as CountersMessage
from gateway.link.messages import (
    Credited,
    Explain,
    Explained,
    Hello,
    Reheld,
    Rehold,
    Signals,
    Version,
)
from gateway.metering.desk import Desk
from gateway.metering.incarnation import Incarnation
from gateway.readiness import Readiness
from gateway.reads import ReadLane
from gateway.recount import Recount
from gateway.revocation import cut_revoked
from gateway.routes import Routes
from gateway.settings import Settings
from gateway.snapshot import Snapshot
from gateway.snapshot_feed import SnapshotFeed
from gateway.telemetry.access import AccessLog, configure_logging
from gateway.telemetry.counters import Counters, labels_of
from gateway.telemetry.tracing import Tracer
from gateway.tokenizer import Tokenizer, TokenizerError
from gateway.tokenizer import load as load_tokenizer
from gateway.wire.cors import cors_of
from gateway.wire.deadlines import Wheel
from gateway.wire.fetch import fetch
from gateway.wire.request import networks_of
from gateway.wire.server import Server
from quotas.errors import StoreUnavailable
from quotas.ports import QuotaStore
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from quotas.unbilled import UnbilledEndings

TICK_S = 0.5
#: Access lines gather this long before they are written: a system call for many of them.
ACCESS_LINES_S = 0.02
#: A request leaves a few dozen objects that know each other: collected some hundred requests at a
#: time (a millisecond's work), not every few.
GC_THRESHOLDS = (20_000, 20, 50)
SETTLE_GRACE_S = 5.0
STORE_TRIES = 25
STORE_RETRY_S = 0.2
log = logging.getLogger("gateway.dataplane")


class DataPlane:
    """One data process, from launch to drain."""

    def __init__(self, launch: Launch, leash: Leash) -> None:
        settings = launch.settings
        loop = asyncio.get_running_loop()
        self._launch = launch
        self._leash = leash
        self._settings = settings
        self._monotonic = loop.time
        self._parted = asyncio.Event()
        self._drain_asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.snapshot = Snapshot()
        self.readiness = Readiness(settings.max_stale_s)
        self.counters = Counters()
        self.incarnation = Incarnation.create(
            Path(settings.data_dir),
            launch.slot,
            board_slots=settings.board_slots,
            segment_bytes=settings.journal_segment_bytes,
        )
        self.store = _store_of(launch, self.incarnation.name)
        self.desk = Desk(self.incarnation.board, self.incarnation.journal, self.store)
        self.wheel = Wheel(settings.wire.tick_s, loop)
        self.engines = Engines(process_environ(), settings.wire.upstream_idle_s)
        self.feed = SnapshotFeed(
            self.snapshot,
            self.engines,
            Path(settings.data_dir) / "snapshot",
            loop.time,
            self._applied,
        )
        self.access = (
            AccessLog(2, partial(loop.call_later, ACCESS_LINES_S)) if settings.access_log else None
        )
        self.tracer = (
            Tracer(settings.otlp_endpoint, __version__) if settings.otlp_endpoint else None
        )
        self.link = LinkClient(
            launch.link_path,
            self._hello,
            {
                "moves": self.feed.take,
                "signals": self._on_signals,
                "explain": self._on_explain,
                "rehold": self._on_rehold,
                "credited": self._on_credited,
            },
        )
        self._tokenizer = _tokenizer_of(settings)
        self.balances = Balances(self.store, self.link.ask, self._calls)
        self.census = Census(self.store, settings.processes * settings.hosts, loop.time)
        self.leases = Leases(
            self.store,
            self.counters,
            name=self.incarnation.name,
            processes=self.census.processes,
            monotonic=loop.time,
        )
        self.admission = Admission(
            self.store,
            self.balances,
            self.leases,
            processes=self.census.processes,
            unix_ms=unix_ms,
        )
        self.authentication = Authentication(self.snapshot, launch.pepper.encode(), unix_ms)
        self.inference = self._inference()
        self.explainer = Explainer(
            self.snapshot, self.store, self.intake.refusals, self.leases, unix_ms
        )
        self.server = Server(
            settings.wire,
            self._routes().handle,
            _refuse,
            self.wheel,
            networks_of(settings.trusted_proxies),
            proxy_protocol=settings.proxy_protocol,
            cors=cors_of(settings.cors_origins),
            on_refused=self._count_refused,
        )

    # -- building ----------------------------------------------------------------------------

    def _inference(self) -> Inference:
        pepper = self._launch.pepper.encode()
        forwarder = Forwarder(
            engines=self.engines,
            counters=self.counters,
            wheel=self.wheel,
            silence_s=self._settings.wire.silence_s,
            salt=cache_salts(pepper),
            monotonic=self._monotonic,
            unix_ms=unix_ms,
        )
        counts = EngineCounts(self.engines, fetch, self._monotonic)
        claims = Claims(self.admission, pepper)
        unbilled = UnbilledEndings(self._settings.unbilled_endings_per_minute)
        self.intake = Intake(
            snapshot=self.snapshot,
            engines=self.engines,
            admission=self.admission,
            desk=self.desk,
            unbilled=unbilled,
            counters=self.counters,
            ceilings=Ceilings(self.snapshot, self.engines, counts),
            claims=claims,
            pepper=pepper,
            monotonic=self._monotonic,
            unix_ms=unix_ms,
            tokenizer=self._tokenizer,
        )
        return Inference(
            snapshot=self.snapshot,
            authentication=self.authentication,
            intake=self.intake,
            engines=self.engines,
            forwarder=forwarder,
            admission=self.admission,
            desk=self.desk,
            claims=claims,
            recount=Recount(self.engines, counts, self.counters),
            unbilled=unbilled,
            counters=self.counters,
            monotonic=self._monotonic,
            unix_ms=unix_ms,
            chance=random.random,
            bounds=msgspec.convert(msgspec.structs.asdict(self._settings.policy), Bounds),
        )

    def _routes(self) -> Routes:
        return Routes(
            inference=self.inference,
            authentication=self.authentication,
            reads=ReadLane(self.link.ask),
            explainer=self.explainer,
            snapshot=self.snapshot,
            counters=self.counters,
            access=self.access,
            tracer=self.tracer,
            trace_sample=self._settings.trace_sample,
            readiness=self.report,
            unready=self.unready,
            unix_ms=unix_ms,
            monotonic=self._monotonic,
            chance=random.random,
        )

    # -- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the supervisor says drain or is gone."""
        self._spawn(self._leash.watch(self._drain_asked.set, self._parted.set), "leash")
        self._spawn(self.link.run(), "link")
        self._spawn(self.feed.run(), "moves")
        if isinstance(self.store, RedisStore):
            await _connected(self.store)
        await self.census.beat()  # others are to know before this one admits anything
        await self.feed.first()
        self.wheel.start()
        await self.server.serve(socket.socket(fileno=self._launch.listen_fd))
        self._spawn(self._tick(), "tick")
        self._spawn(self.census.run(), "census")
        self._spawn(self.leases.run(), "leases")
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._leash.tell(Event(event="ready", detail=str(self.snapshot.version)))
        parted = asyncio.ensure_future(self._parted.wait())
        asked = asyncio.ensure_future(self._drain_asked.wait())
        await asyncio.wait((parted, asked), return_when=asyncio.FIRST_COMPLETED)
        drain_s = 0.0 if self._parted.is_set() else self._settings.drain_s
        parted.cancel()
        asked.cancel()
        await self._drain(drain_s)

    async def _drain(self, drain_s: float) -> None:
        """Stop accepting, let streams finish, end the rest with an error event, settle all."""
        self.readiness.draining = True
        self.server.stop_accepting()
        await self.server.drain(drain_s)
        for call in list(self.inference.running.values()):
            call.stop("shutdown", Draining())
        await self.server.drain(1.0)
        self.server.close()
        await self.inference.counted(ASK_S if drain_s else 0.1)
        self.desk.retry()
        self.leases.give_all_back()
        settled = await self.store.flush(SETTLE_GRACE_S if drain_s else 0.2)
        if not settled:
            log.warning("stopped with settlements unacknowledged; recovery will settle them")
        self._tell_counters()
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.wheel.stop()
        self.engines.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        self.leases.close()
        await self.admission.close()
        await self.census.leave()
        await self.store.close()
        self.incarnation.close()
        if self.access is not None:
            self.access.flush()
        if self.tracer is not None:
            self.tracer.close()

    # -- the link ----------------------------------------------------------------------------

    def _hello(self) -> Hello:
        self.feed.begin()
        return Hello(self._launch.slot, os.getpid(), self.snapshot.version)

    def _on_signals(self, body: bytes) -> None:
        for each in msgspec.msgpack.decode(body, type=Signals).endpoints:
            self.engines.signals[each.endpoint_id] = each

    def _on_explain(self, body: bytes) -> None:
        question = msgspec.msgpack.decode(body, type=Explain)
        self._spawn(self._explain(question), "explain")

    async def _explain(self, question: Explain) -> None:
        asked = Asked(question.input_tokens, question.output_tokens)
        try:
            found = await self.explainer.explain(question.key_id, question.model_id, asked)
        except StoreUnavailable:
            found = None
        said = b"" if found is None else msgspec.json.encode(found)
        answer = Explained(question.number, said)
        self.link.send("explained", msgspec.msgpack.encode(answer))

    def _calls(self) -> list[Call]:
        return list(self.inference.running.values())

    def _on_rehold(self, body: bytes) -> None:
        self._spawn(self._rehold(msgspec.msgpack.decode(body, type=Rehold)), "rehold")

    async def _rehold(self, wanted: Rehold) -> None:
        await self.balances.rehold(wanted)
        self.link.send("reheld", msgspec.msgpack.encode(Reheld(wanted.number)))

    def _on_credited(self, body: bytes) -> None:
        self._spawn(self._credit(msgspec.msgpack.decode(body, type=Credited)), "credit")

    async def _credit(self, said: Credited) -> None:
        """Where the balance is not known yet, the count that is still to come includes it."""
        epoch = await self.store.epoch(said.tag)
        await self.store.adjust(said.tag, epoch, said.adjustment_id, said.limit, said.delta_micro)

    def _applied(self, version: int) -> None:
        self._cut_revoked()
        self._leash.tell(Event(event="version", detail=str(version)))
        self.link.send("version", msgspec.msgpack.encode(Version(version)))

    def _cut_revoked(self) -> None:
        cut_revoked(self.inference.running.values(), self.snapshot, time())

    # -- twice a second ----------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.desk.retry()
            if self.link.connected and self.link.heard_s is not None:
                self.feed.heard_s = self.link.heard_s
            self.link.send("version", msgspec.msgpack.encode(Version(self.snapshot.version)))
            self._tell_counters()
            self._cut_revoked()
            if self.access is not None:
                self.access.flush()

    def _tell_counters(self) -> None:
        counters = self.counters
        counters.set("tf_reservations_open", self.desk.open)
        counters.set("tf_connections_open", self.server.connections)
        counters.set("tf_snapshot_version", self.snapshot.version)
        counters.set("tf_journal_bytes", self.incarnation.journal.bytes_used)
        counters.set("tf_settle_lag_seconds", self.store.settle_lag_s())
        counters.set("tf_offline_credit_micro", self.admission.on_credit_micro)
        counters.set("tf_processes_known", self.census.processes())
        counters.gauges["tf_lease_units"] = {
            labels_of(*what): units for what, units in self.leases.units().items()
        }
        message = CountersMessage(
            self._launch.slot,
            os.getpid(),
            counters.counters,
            counters.gauges,
            counters.observed(),
        )
        self.link.send("counters", msgspec.msgpack.encode(message))

    def _count_refused(self, reason: str) -> None:
        self.counters.add("tf_head_refusals_total", reason)

    def _age_s(self) -> float:
        return self._monotonic() - self.feed.heard_s

    def report(self) -> dict[str, object]:
        """Whether new requests are served, why not, and how old the snapshot is."""
        return self.readiness.report(
            self.snapshot.version, self._age_s(),
            control=self.link.connected, store=self.store.name,
        )  # fmt: skip

    def unready(self) -> str:
        """Why no new request is served; "" where they are. Asked by every one of them."""
        return self.readiness.reason(self.snapshot.version, self._age_s())

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task %s died", task.get_name(), exc_info=task.exception())
            self._parted.set()  # a data process without its background is restarted


def _tokenizer_of(settings: Settings) -> Tokenizer | None:
    """A vocabulary that cannot be used costs the better estimate, not the service."""
    if not settings.tokenizers_dir:
        return None
    try:
        return load_tokenizer(settings.tokenizers_dir, settings.tokenizer)
    except TokenizerError as error:
        log.error("%s; prompts are estimated by their bytes", error)  # noqa: TRY400 -- a sentence
        return None


def _store_of(launch: Launch, owner: str) -> QuotaStore:
    if launch.store_url is None:
        return MemoryStore(unix_ms)
    return RedisStore(launch.store_url, name=launch.store_name, owner=owner)


async def _connected(store: RedisStore) -> None:
    """A store that is loading its data says no for a while; one that is away is told at serving."""
    for _ in range(STORE_TRIES):
        try:
            await store.start()
        except StoreUnavailable:
            await asyncio.sleep(STORE_RETRY_S)
        else:
            return
    log.warning("the store does not answer; requests are refused until it does")


def _refuse(error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What the wire answers to a request that never became one."""
    request_id = secrets.token_hex(16)
    said = answer(error, request_id)
    headers = [(b"content-type", b"application/json"), *said.headers, *id_headers(request_id)]
    return said.status, headers, said.body


def unix_ms() -> int:
    return time_ns() // 1_000_000


async def _main(leash_fd: int) -> None:
    leash = Leash(leash_fd)
    launch = await leash.open()
    configure_logging(launch.settings.log_level)
    await DataPlane(launch, leash).run()


def main() -> None:
    """The process's entry; exits 0 after a drain."""
    uvloop.run(_main(int(sys.argv[1])))


if __name__ == "__main__":
    main()
