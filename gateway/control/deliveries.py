"""Deliveries: what the ledger and the alerts have for each sink, sent until the receiver says 2xx.

One task a sink, on one host at a time (a duty). It reads what lies behind the sink's cursor, sends it
in order, and moves the cursor after the answer and never before: what a crash leaves in between is
sent again with the same ids. A failure stops the sink, and so every tenant's later events, until it is
tried again; an event that the receiver refuses for what it is, is parked and the others go on. Not
here: what an event looks like (``gateway.control.formats``), what an answer means
(``gateway.control.retries``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.control.formats import (
    BATCH_MAX,
    BadSecret,
    Form,
    Message,
    NotSendable,
    has_already,
    is_busy,
    is_told,
    message,
    signature,
)
from gateway.control.retries import Verdict, delay_s, retry_after_s, verdict
from gateway.events import Event
from gateway.store import duties, outbox
from gateway.store import sinks as kept
from gateway.store.database import Database
from gateway.store.outbox import Item
from gateway.store.sinks import Deposed, Sink
from gateway.wire.addresses import check_receiver
from gateway.wire.dial import parse_endpoint
from gateway.wire.fetch import Fetched, FetchFailed

#: How often a sink looks for what is new, and for sinks that are.
IDLE_S = 0.5
PAGE = 1_000
#: A duty outlives the longest send by this, and is taken again when less than that is left of it.
HELD_S = 20.0
#: How often a host that holds no duty asks for it.
ASKED_EVERY_S = 3.0
ANSWER_BYTES_MAX = 4 << 20
_BODY_SHOWN = 160
_log = logging.getLogger("gateway.control.deliveries")
Fetch = Callable[..., Awaitable[Fetched]]


class Answer(msgspec.Struct, frozen=True):
    """What became of one request. ``why`` is said to operators and holds no secret."""

    verdict: Verdict
    why: str = ""
    asked_s: float | None = None


class Misconfigured(Exception):
    """Nothing can be sent before somebody changes something; the message says what."""


class Deliveries:
    """One per control process. ``owner`` names this host's data folder, for ever."""

    def __init__(
        self,
        db: Database,
        fetch: Fetch,
        *,
        owner: str,
        environ: Mapping[str, str],
        unix_ms: Callable[[], int],
        chance: Callable[[], float],
        idle_s: float = IDLE_S,
    ) -> None:
        self._db = db
        self._fetch = fetch
        self._owner = owner
        self._environ = environ
        self._unix_ms = unix_ms
        self._chance = chance
        self._idle_s = idle_s
        self._trouble = (0, 0)
        self._lanes: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, float] = {}  # sink -> when its duty ends, in loop time

    async def run(self) -> None:
        """Deliver until cancelled; leaves no task behind."""
        try:
            while True:
                try:
                    await self._sync()
                except (SQLAlchemyError, OSError) as error:
                    _log.warning("sinks are not looked up: %s", type(error).__name__)
                await asyncio.sleep(self._idle_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop sending, and let another host go on."""
        tasks = list(self._lanes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
        if self._held:
            self._held.clear()
            with contextlib.suppress(SQLAlchemyError, OSError):  # else they end by themselves
                await duties.release(self._db, self._owner)

    async def trouble(self) -> tuple[int, int]:
        """(parked events, sinks whose last try failed); as last known while the database is away."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._trouble = await kept.count_trouble(self._db)
        return self._trouble

    async def _sync(self) -> None:
        async with self._db.read() as connection:
            wanted = {sink.id for sink in await kept.read_sinks(connection)}
        for sink_id in self._lanes.keys() - wanted:
            self._lanes.pop(sink_id).cancel()
        for sink_id in wanted - self._lanes.keys():
            self._lanes[sink_id] = asyncio.create_task(self._lane(sink_id), name=f"sink {sink_id}")

    async def _lane(self, sink_id: int) -> None:
        """One sink, for ever."""
        while True:
            pause_s = self._idle_s
            try:
                if await self._is_ours(sink_id):
                    await self.deliver(sink_id)
                else:
                    pause_s = ASKED_EVERY_S
            except Deposed as sink:
                self._held.pop(sink_id, None)
                _log.warning("another host sends to sink %s", sink)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("sink %d waits for the database: %s", sink_id, type(error).__name__)
            except Exception:  # noqa: BLE001 -- the wall of a task: one odd sink stops no other
                _log.exception("sink %d failed", sink_id)
                pause_s = ASKED_EVERY_S
            await asyncio.sleep(pause_s)

    async def _is_ours(self, sink_id: int, for_s: float = 0.0) -> bool:
        """Whether we hold the sink's duty for at least ``for_s`` more."""
        now_s = asyncio.get_running_loop().time()
        if self._held.get(sink_id, 0.0) - now_s > for_s + HELD_S / 2:
            return True
        ttl_s = for_s + HELD_S
        if not await duties.hold(self._db, f"sink {sink_id}", self._owner, int(ttl_s * 1000)):
            self._held.pop(sink_id, None)
            return False
        self._held[sink_id] = now_s + ttl_s
        return True

    # -- one pass ----------------------------------------------------------------------------

    async def deliver(self, sink_id: int) -> None:
        """Send what there is, until there is no more or a failure. Raises ``Deposed``."""
        while True:
            async with self._db.read() as connection:
                sink = await kept.read_sink(connection, sink_id)
            if sink is None or sink.retry_ms > self._unix_ms():
                return
            if not await self._replay(sink):
                return
            page = await self._next(sink)
            if page.end == sink.cursor:
                return
            if not await self._send_page(sink, page):
                return

    async def _next(self, sink: Sink) -> outbox.Page:
        read = outbox.next_usage if sink.kind == "sink" else outbox.next_alerts
        return await read(self._db, sink.cursor, PAGE)

    async def _send_page(self, sink: Sink, page: outbox.Page) -> bool:
        """In order, batch by batch; False after a failure."""
        size = min(sink.options.batch, BATCH_MAX[sink.options.format])
        wanted = [item for item in page.items if _wants(sink, item.event)]
        for start in range(0, len(wanted), size):
            batch = wanted[start : start + size]
            answer = await self._send(sink, [item.event for item in batch])
            if answer.verdict == "refused" and len(batch) > 1:
                for item in batch:
                    moved = await self._settle(sink, [item], await self._send(sink, [item.event]))
                    if moved is None:
                        return False
                    sink = moved
                continue
            moved = await self._settle(sink, batch, answer)
            if moved is None:
                return False
            sink = moved
        if sink.cursor != page.end:  # what nobody is to hear of lies behind us as well
            await kept.advance(self._db, sink, page.end, 0, self._unix_ms())
        return True

    async def _settle(self, sink: Sink, batch: Sequence[Item], answer: Answer) -> Sink | None:
        """Note what became of a batch, or of one event; the sink behind it, None after a failure."""
        after = batch[-1].after
        if answer.verdict == "again":
            await self._failed(sink, answer)
            return None
        if answer.verdict == "delivered":
            await kept.advance(self._db, sink, after, len(batch), self._unix_ms())
        else:
            event = batch[0].event
            _log.error("sink %s refused event %s: %s", sink.name, event.id, answer.why)
            await kept.park(self._db, sink, after, event, answer.why, self._unix_ms())
        return msgspec.structs.replace(sink, cursor=after, failures=0)

    async def _replay(self, sink: Sink) -> bool:
        """Parked events that an operator wants sent again, one by one; False after a failure."""
        async with self._db.read() as connection:
            queued = await kept.read_queued(connection, sink.id, PAGE)
        for each in queued:
            answer = await self._send(sink, [each.event])
            if answer.verdict == "again":
                await self._failed(sink, answer)
                return False
            if answer.verdict == "delivered":
                await kept.unpark(self._db, sink.id, each.id, self._unix_ms())
            else:
                await kept.park_again(self._db, each.id, answer.why)
        return True

    async def _failed(self, sink: Sink, answer: Answer) -> None:
        failures = sink.failures + 1
        wait_s = delay_s(failures, self._chance(), answer.asked_s)
        _log.warning("sink %s: %s; again in %.1f s", sink.name, answer.why, wait_s)
        retry_ms = self._unix_ms() + int(wait_s * 1000)
        await kept.note_failure(self._db, sink.id, failures, retry_ms, answer.why)

    # -- one request -------------------------------------------------------------------------

    async def _send(self, sink: Sink, events: Sequence[Event]) -> Answer:
        """One request, while the duty is ours. Raises ``Deposed``."""
        options = sink.options
        if not await self._is_ours(sink.id, options.timeout_s):
            raise Deposed(sink.name)
        form = form_of(sink)
        try:
            made = message(form, events)
            secrets = self._secrets(options)
            headers = self._headers(options, made, secrets)
        except NotSendable as reason:
            return Answer("refused", str(reason))
        except (Misconfigured, BadSecret) as reason:
            return Answer("again", str(reason))
        try:
            address = parse_endpoint(options.url)
            fetched = await self._fetch(
                msgspec.structs.replace(address, prefix=""),
                "POST",
                urlsplit(options.url).path or "/",
                headers=headers,
                body=made.body,
                timeout_s=options.timeout_s,
                max_bytes=ANSWER_BYTES_MAX,
                ca_file=options.ca_file,
                policy=check_receiver,
            )
        except FetchFailed as failure:
            return Answer("again", str(failure))
        return self._judge(form, fetched, len(events), secrets)

    def _judge(
        self, form: Form, fetched: Fetched, count: int, secrets: Mapping[str, str]
    ) -> Answer:
        found = "again" if is_busy(form, fetched.status) else verdict(fetched.status)
        if found == "delivered" or (count == 1 and has_already(form, fetched.status, fetched.body)):
            return Answer("delivered")
        said = fetched.body[:_BODY_SHOWN].decode("utf-8", "replace")
        for secret in secrets.values():  # a receiver may say what it was told
            said = said.replace(secret, "(hidden)")
        said = "".join(each if each.isprintable() else " " for each in said).strip()
        why = f"the receiver answered {fetched.status}" + (f": {said}" if said else "")
        asked_s = retry_after_s(fetched.headers, self._unix_ms() / 1000)
        return Answer(found, why, asked_s)

    def _headers(
        self, options: kept.Options, made: Message, secrets: Mapping[str, str]
    ) -> list[tuple[bytes, bytes]]:
        """Raises ``BadSecret``."""
        headers = [("content-type", made.content_type), ("user-agent", "tokenfactory")]
        if "auth" in secrets:
            bearer = options.auth_header.lower() == "authorization" and " " not in secrets["auth"]
            headers.append((options.auth_header, "Bearer " * bearer + secrets["auth"]))
        if "secret" in secrets:
            now_s = self._unix_ms() // 1000
            headers += signature(secrets["secret"], made.id, now_s, made.body)
        return [(name.encode(), value.encode()) for name, value in headers]

    def _secrets(self, options: kept.Options) -> dict[str, str]:
        """Read for each request, so that one that was changed is used. Raises ``Misconfigured``."""
        found = {}
        for name, variable, file in (
            ("auth", options.auth_env, options.auth_file),
            ("secret", options.secret_env, options.secret_file),
        ):
            if variable is None and file is None:
                continue
            value = self._environ.get(variable, "") if variable else _read(file or "")
            value = value.strip()
            if not value:
                raise Misconfigured(f"{name}: {variable or file}: expected it to be there and set")
            if not value.isprintable() or not value.isascii():
                raise Misconfigured(f"{name}: {variable or file}: expected one line of ASCII")
            found[name] = value
        return found


def form_of(sink: Sink) -> Form:
    options = sink.options
    return Form(
        format=options.format,
        source=options.source,
        event_name=options.event_name,
        value=options.value,
        subjects=options.subjects,
    )


def _wants(sink: Sink, event: Event) -> bool:
    """Whether the sink is to hear of it."""
    options = sink.options
    if options.events is not None and event.type not in options.events:
        return False
    if options.tenants is not None and event.subject not in options.tenants:
        return False
    return is_told(form_of(sink), event)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return ""
