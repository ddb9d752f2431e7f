"""The reconciler: every hour, and when asked, engines' counters against the ledger.

It is told each scrape and each probe, keeps in mind when an engine last stood still, and judges from
one such moment to the next, over restarts of the engine and of this process. Open requests of this
host are read from its boards before the ledger is, so that none is missed between them; other hosts are asked
for theirs, and tell them when they have shipped what had ended. A difference
is judged again for a day: a host that ships late closes it. Not here: the arithmetic
(``gateway.metering.reconcile``), SQL (``gateway.store.reconciliations``).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.control.capabilities import UsageFound
from gateway.metering.board import read_board
from gateway.metering.incarnation import BOARD, all_folders
from gateway.metering.reconcile import (
    Claim,
    Point,
    Reckoning,
    Report,
    claim_of_probe,
    claim_of_slot,
    claims_of,
    total,
)
from gateway.metering.slots import SlotImage
from gateway.store import open_requests
from gateway.store import reconciliations as kept
from gateway.store.database import Database
from gateway.telemetry.counters import labels_of
from quotas.record import decode
from routing.exposition import Exposition

EVERY_S = 3_600.0
#: How often new endpoints are looked for, and the hour's end.
TICK_S = 1.0
#: A turn that runs when all is stopped has this long to end.
LAST_TURN_S = 2.0
#: Counters that did not move for this long while nothing ran stand still.
QUIET_MS = 500
#: A command waits this long for engines to stand still, before it takes them as they run.
PATIENCE_S = 5.0
#: A moment of rest this young is as good as now.
FRESH_MS = 3_000
DAY_MS = 86_400_000
JUDGED_AGAIN_MS = DAY_MS
KEPT_DAYS = 90
#: From the end of a request to the ledger, on any host that is well.
OTHERS_SHIP_S = 2.0
#: Other hosts are given this long more to tell what they have open.
OTHERS_TELL_S = 5.0
_log = logging.getLogger("gateway.control.reconciler")


class _Watched:
    """What is known of one endpoint's counters. ``first``: seen of this life of the engine;
    ``ended``: first and last points of lives that are over.
    """

    def __init__(self) -> None:
        self.first: Point | None = None
        self.latest: Point | None = None
        self.running = False
        self.rest: Point | None = None  # the last moment at which it stood still
        self.ended: list[tuple[Point, Point]] = []
        self.begun = False  # it has a point in SQL

    def take(self, point: Point, *, running: bool) -> None:
        before = self.latest
        if before is not None and self.first is not None and _is_other_life(before, point):
            self.ended.append((self.first, before))
            before = self.first = self.rest = None
        self.first = self.first or point
        still = before is not None and not running and not self.running
        if before is not None and still and _same_counts(before, point):
            point = msgspec.structs.replace(point, quiet_since_ms=before.quiet_since_ms)
        self.latest, self.running = point, running
        if point.at_ms - point.quiet_since_ms >= QUIET_MS:
            self.rest = point


class Reconciler:
    """One per control process. ``ship`` brings what has ended into the ledger; ``endpoint_name``
    gives an endpoint id's URL; ``unix_ms`` is the clock of records. ``others``: hosts beside this
    one ask the same engines. ``kept_days``: for which reports and probes are kept.
    """

    def __init__(
        self,
        db: Database,
        data_dir: Path,
        *,
        ship: Callable[[], Awaitable[None]],
        endpoint_name: Callable[[int], str],
        unix_ms: Callable[[], int],
        host: str = "",
        others: bool = False,
        kept_days: int = KEPT_DAYS,
    ) -> None:
        self._db = db
        self._data_dir = data_dir
        self._ship = ship
        self._endpoint_name = endpoint_name
        self._unix_ms = unix_ms
        self._host = host
        self._others = others
        self.others_ship_s = OTHERS_SHIP_S
        self.others_tell_s = OTHERS_TELL_S
        self._kept_ms = kept_days * DAY_MS
        self._watched: dict[str, _Watched] = {}
        self._turn = asyncio.Lock()
        self.newest: dict[str, Report] = {}  # endpoint -> its last report of this process's life

    # -- what it is told ---------------------------------------------------------------------

    def scraped(self, endpoint: str, seen: Exposition) -> None:
        """An engine's counters were read just now."""
        counters = seen.counters
        if counters.prompt_tokens is None or counters.generation_tokens is None:
            return
        at_ms = self._unix_ms()
        point = Point(
            endpoint=endpoint,
            at_ms=at_ms,
            quiet_since_ms=at_ms,
            started_ms=round((counters.started_s or 0) * 1000),
            prompt=round(counters.prompt_tokens),
            generation=round(counters.generation_tokens),
        )
        running = bool(seen.running or seen.waiting) or seen.running is None
        self._watched.setdefault(endpoint, _Watched()).take(point, running=running)

    async def probing(self, endpoint: str, ask: Callable[[], Awaitable[UsageFound]]) -> UsageFound:
        """Ask a question that costs tokens, with its cost on record before and after."""
        started_ms = self._unix_ms()
        try:
            probe_id = await kept.open_probe(self._db, endpoint, started_ms)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("a probe of %s goes unrecorded: %s", endpoint, type(error).__name__)
            return await ask()
        found = await ask()
        known = found.mode in ("continuous", "final")
        counted = (found.prompt_tokens, found.completion_tokens) if known else None
        try:
            await kept.close_probe(self._db, probe_id, self._unix_ms(), counted)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("a probe of %s has no cost: %s", endpoint, type(error).__name__)
        return found

    # -- when --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Begin what is new, reconcile every hour, tell other hosts what is open here; cancel to stop.
        Failures are tried again.
        """
        tasks = [self._every_tick(self._hourly())]
        if self._others or not self._db.is_sqlite:  # a database that hosts may share
            tasks.append(self._every_tick(self._tell))
        await asyncio.gather(*tasks)

    def _hourly(self) -> Callable[[], Awaitable[None]]:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + EVERY_S

        async def turn() -> None:
            nonlocal due_s
            await self._begin()
            if loop.time() >= due_s:
                due_s = loop.time() + EVERY_S
                await self.reconcile(patience_s=0)
                await kept.prune(self._db, self._unix_ms() - self._kept_ms)

        return turn

    async def _every_tick(self, turn: Callable[[], Awaitable[None]]) -> None:
        said = ""
        while True:
            await asyncio.sleep(TICK_S)
            running = asyncio.ensure_future(turn())
            try:
                await asyncio.shield(running)
                said = ""
            except asyncio.CancelledError:
                # A statement that is broken off may leave its connection closing for ever.
                await asyncio.wait((running,), timeout=LAST_TURN_S)
                raise
            except Exception as error:  # noqa: BLE001 -- the wall of a task: the database's driver
                if said != type(error).__name__:  # once an outage
                    said = type(error).__name__
                    _log.warning("reconciliation waits: %s", said)
                    _log.debug("where it waits", exc_info=error)

    async def reconcile(self, patience_s: float = PATIENCE_S) -> list[Report]:
        """Judge every endpoint from where the last reconciliation ended to now.

        An endpoint seen for the first time has no report yet. Raises what the database raises.
        """
        async with self._turn:
            await self._rest(patience_s)
            await self._begin()
            segments: dict[str, list[tuple[Point, Point]]] = {}
            for endpoint, watched in self._watched.items():
                segments[endpoint] = await self._segments(endpoint, watched, patience_s)
            # Only now, when it is known up to when: what ended by then is in a ledger or a journal.
            open_claims = await self._others_open()
            open_claims += await asyncio.to_thread(self._open_claims)
            await self._ship()
            await self._judge_again(open_claims)
            pairs = [pair for each in segments.values() for pair in each]
            reports = await self._judged(pairs, open_claims)
            for endpoint, mine in segments.items():
                await self._save(endpoint, mine, reports)
            return reports

    def gauges(self) -> dict[str, dict[str, float]]:
        """Metric -> labels -> number, of each endpoint's last report; nothing without one."""
        difference: dict[str, float] = {}
        room: dict[str, float] = {}
        to_s: dict[str, float] = {}
        for endpoint, report in self.newest.items():
            prompt, generation = labels_of(endpoint, "prompt"), labels_of(endpoint, "generation")
            difference[prompt] = report.difference_prompt
            difference[generation] = report.difference_generation
            room[prompt] = report.prompt.room
            room[generation] = report.generation.room
            to_s[endpoint] = report.to_ms / 1000
        if not to_s:
            return {}
        return {
            "tf_reconcile_difference_tokens": difference,
            "tf_reconcile_room_tokens": room,
            "tf_reconcile_timestamp_seconds": to_s,
        }

    # -- other hosts -------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Live, and answer who asked: what is open here, when what had ended is shipped."""
        question = await open_requests.note(self._db, self._host)
        if question:
            claims = await asyncio.to_thread(self._open_claims)
            await self._ship()
            await open_requests.tell(self._db, self._host, question, _json(claims))

    async def _others_open(self) -> list[Claim]:
        """What other hosts have open, when they have had the time to ship what has ended."""
        asked = await open_requests.ask(self._db, self._host)
        if self._others:
            await asyncio.sleep(self.others_ship_s)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.others_tell_s
        told = await open_requests.told(self._db, asked) if asked else {}
        while len(told) < len(asked) and loop.time() < until_s:
            await asyncio.sleep(min(0.1, self.others_tell_s))
            told = await open_requests.told(self._db, asked)
        if len(told) < len(asked):
            silent = ", ".join(sorted(asked.keys() - told.keys()))
            _log.warning("hosts that did not say what they have open: %s", silent)
        return [claim for text in told.values() for claim in _claims(text)]

    # -- from where to where -----------------------------------------------------------------

    async def _rest(self, patience_s: float) -> None:
        """Wait until every engine has stood still a moment ago, or patience ends."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        since_ms = self._unix_ms()
        while loop.time() < until_s:
            rests = [watched.rest for watched in self._watched.values()]
            if all(rest is not None and rest.at_ms >= since_ms for rest in rests):
                return
            await asyncio.sleep(0.1)

    async def _begin(self) -> None:
        """The first point of endpoints that have none."""
        for endpoint, watched in self._watched.items():
            if watched.latest is not None and not watched.begun:
                point = watched.latest
                await kept.begin(self._db, endpoint, point.at_ms, _json(point))
                for text in await kept.read_reports(self._db, endpoint=endpoint, limit=1):
                    self.newest[endpoint] = msgspec.json.decode(text, type=Report)
                watched.begun = True

    async def _segments(
        self, endpoint: str, watched: _Watched, patience_s: float
    ) -> list[tuple[Point, Point]]:
        """Pairs of points of one life each, from the kept one on."""
        text = await kept.read_point(self._db, endpoint)
        latest = watched.latest
        if text is None or latest is None:
            return []
        base = msgspec.json.decode(text, type=Point)
        pairs = []
        for first, ended in watched.ended:
            if _is_other_life(base, ended):
                base = _birth(first)
            if ended.at_ms > base.at_ms:
                pairs.append((base, ended))
        if _is_other_life(base, latest):
            _log.info("the engine at %s began anew: its counters are judged from there", endpoint)
            base = _birth(watched.first or latest)
        # On the hour any moment of rest since the last one; when asked, one of just now.
        rest, last = watched.rest, latest
        since_ms = base.at_ms if patience_s == 0 else max(base.at_ms, latest.at_ms - FRESH_MS)
        if rest is not None and rest.at_ms > since_ms:
            last = rest
        if last.at_ms > base.at_ms:
            pairs.append((base, last))
        return pairs

    async def _save(
        self, endpoint: str, pairs: list[tuple[Point, Point]], reports: list[Report]
    ) -> None:
        if not pairs:
            return
        mine = [report for report in reports if report.endpoint == endpoint]
        text = await kept.read_point(self._db, endpoint)
        since_ms = msgspec.json.decode(text or "null", type=Point | None)
        rows = [_row(*pair, report) for pair, report in zip(pairs, mine, strict=True)]
        last = pairs[-1][1]
        if since_ms is not None and await kept.save(
            self._db,
            endpoint=endpoint,
            since_ms=since_ms.at_ms,
            at_ms=last.at_ms,
            point=_json(last),
            found=rows,
        ):
            self._watched[endpoint].ended.clear()
        self.newest[endpoint] = mine[-1]
        for report in mine:
            _say(report)

    # -- judging -----------------------------------------------------------------------------

    async def _judged(
        self, pairs: list[tuple[Point, Point]], open_claims: Iterable[Claim]
    ) -> list[Report]:
        """One pass over the ledger for all pairs, in their order."""
        if not pairs:
            return []
        from_ms = min(first.at_ms for first, _ in pairs)
        to_ms = max(last.at_ms for _, last in pairs)
        reckonings = [Reckoning(first, last) for first, last in pairs]
        waiting = {claim.request_id: claim for claim in open_claims}
        async for page in kept.payloads_between(self._db, from_ms, to_ms):
            for payload in page:
                record = decode(payload)
                waiting.pop(record.request_id, None)
                _add(reckonings, claims_of(record))
            await asyncio.sleep(0)
        _add(reckonings, waiting.values())
        for probe in await kept.probes_between(self._db, from_ms, to_ms):
            counted = None
            if probe.prompt_tokens is not None and probe.completion_tokens is not None:
                counted = (probe.prompt_tokens, probe.completion_tokens)
            claim = claim_of_probe(probe.endpoint, probe.started_ms, probe.ended_ms, counted)
            _add(reckonings, [claim])
        return [reckoning.report() for reckoning in reckonings]

    async def _judge_again(self, open_claims: list[Claim]) -> None:
        """Differences of the last day, with what has been shipped since."""
        found = await kept.unexplained(self._db, self._unix_ms() - JUDGED_AGAIN_MS)
        points = [
            (
                msgspec.json.decode(each.first, type=Point),
                msgspec.json.decode(each.last, type=Point),
            )
            for each in found
        ]
        for each, report in zip(found, await self._judged(points, open_claims), strict=True):
            text = _json(report)
            if text != each.report:
                await kept.judge_again(self._db, each.id, text, sum(total([report])))
                _say(report)

    def _open_claims(self) -> list[Claim]:
        """Requests of this host that have not ended, or not reached the ledger."""
        claims = []
        for folder in all_folders(self._data_dir):
            try:
                slots = read_board(folder / BOARD)
            except (OSError, ValueError):
                continue  # a folder comes or goes
            for slot in slots:
                if not isinstance(slot, SlotImage) or not slot.attempts:
                    continue
                name = self._endpoint_name(slot.attempts[-1].endpoint_id)
                claim = claim_of_slot(slot, name)
                if claim is not None:
                    claims.append(claim)
        return claims


def _add(reckonings: list[Reckoning], claims: Iterable[Claim]) -> None:
    for claim in claims:
        for reckoning in reckonings:
            reckoning.add(claim)


def _is_other_life(before: Point, after: Point) -> bool:
    """The engine began anew in between: it says so, or its counters fell."""
    fell = after.prompt < before.prompt or after.generation < before.generation
    return before.started_ms != after.started_ms or fell


def _same_counts(before: Point, after: Point) -> bool:
    return (before.prompt, before.generation) == (after.prompt, after.generation)


def _birth(point: Point) -> Point:
    """The beginning of a life, when every counter was 0; of an engine that does not say when that
    was, the first point seen.
    """
    if not point.started_ms:
        return point
    return msgspec.structs.replace(
        point, at_ms=point.started_ms, quiet_since_ms=point.started_ms - 1, prompt=0, generation=0
    )


def _row(first: Point, last: Point, report: Report) -> dict[str, Any]:
    return {
        "endpoint": report.endpoint,
        "from_ms": report.from_ms,
        "to_ms": report.to_ms,
        "difference_tokens": sum(total([report])),
        "first_point": _json(first),
        "last_point": _json(last),
        "report": _json(report),
    }


def _say(report: Report) -> None:
    if report.difference_prompt or report.difference_generation:
        _log.error(
            "the engine at %s counted %+d prompt and %+d generation tokens that no record explains",
            report.endpoint,
            report.difference_prompt,
            report.difference_generation,
        )


def _claims(text: str) -> list[Claim]:
    return msgspec.json.decode(text, type=list[Claim])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
