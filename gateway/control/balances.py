"""The sums that money limits are counted from: asked for by a data process whose store lost them.

In this order, so that nothing is counted twice or forgotten: every data process of this host holds
its open requests again under the new epoch, journals are shipped, sums are read from SQL, and with
them goes what they include and whose settle may still arrive. One count a level and epoch: a later one
would undo what was charged since. Whoever asks while a count goes on is counted in the next one,
together: a lost store has every tenant ask. An end user's spending is in no ledger and begins at
nothing. Not here: the store (``gateway.balances`` hands them over).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.link.messages import BalancesAnswer, BalancesAsked, Reheld, Rehold
from gateway.link.server import LinkServer, Peer
from gateway.snapshot import Snapshot, TenantDoc
from gateway.store.database import Database
from gateway.store.spending import parse_scope, spent_micro
from gateway.terms import Calendars
from quotas.calendar import covering
from quotas.limits import Limit
from quotas.ports import Seed

REHOLD_S = 0.5
#: A count that was handed out and never reached the store is made again after this.
TRUSTED_S = 2.0
#: Of each tenant, its balance in micro-units of its currency, and the adjustments that it includes and
#: that may still arrive.
Levels = Callable[
    [AsyncConnection, Collection[int]], Awaitable[Mapping[int, tuple[int, tuple[str, ...]]]]
]


async def no_balances(
    _connection: AsyncConnection, tenant_ids: Collection[int]
) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Where nothing is paid in advance: nobody has a balance."""
    return dict.fromkeys(tenant_ids, (0, ()))


class Question(msgspec.Struct):
    """One asker who waits. ``wanted``: the limits to count; ``lost``: the store is of a new epoch."""

    asked: BalancesAsked
    answer: asyncio.Future[bytes]
    wanted: tuple[Limit, ...] = ()
    lost: bool = False


Level = tuple[str, str]


def level_of(limit: Limit) -> Level:
    """What tells two levels of money of a tag apart."""
    return limit.scope, limit.window


class Balances:
    """One per control process. ``ship``: bring what ended into the ledger; ``unsettled``: request
    ids of a tag that the ledger has and the store has not acknowledged; ``levels``: what SQL says of
    tenants' balances.
    """

    def __init__(
        self,
        db: Database,
        snapshot: Snapshot,
        link: LinkServer,
        *,
        ship: Callable[[], Awaitable[None]],
        unsettled: Callable[[str], tuple[str, ...]],
        levels: Levels,
    ) -> None:
        self._db = db
        self._snapshot = snapshot
        self._link = link
        self._ship = ship
        self._unsettled = unsettled
        self._levels = levels
        self._calendars = Calendars()
        self._turn = asyncio.Lock()
        self._questions: list[Question] = []
        # tag -> epoch, and when each level was handed out
        self._counted: dict[str, tuple[str, dict[Level, float]]] = {}
        self._number = 0
        self._waiting: dict[int, tuple[set[Peer], asyncio.Event]] = {}

    async def on_asked(self, _peer: Peer, body: bytes) -> bytes:
        """A data process's question. Raises what the database raises: the asker refuses money."""
        asked = msgspec.msgpack.decode(body, type=BalancesAsked)
        question = Question(asked, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        async with self._turn:
            if not question.answer.done():
                questions, self._questions = self._questions, []
                try:
                    await self._count(questions)
                except BaseException as failure:
                    self._fail(questions, failure)
                    raise
        return await question.answer

    async def _count(self, questions: Sequence[Question]) -> None:
        """One count for all of them."""
        for question in questions:
            self._sort_out(question)
        lost = {each.asked.tag: each.asked.epoch for each in questions if each.lost}
        if lost:
            await self._rehold(lost)
        wanting = [each for each in questions if each.wanted]
        if wanting:
            await self._ship()
        seeds = await self._seeds(wanting)
        handed_s = time.monotonic()
        for question in questions:
            answer = BalancesAnswer(counted_before=True)
            if question.wanted:
                tag = question.asked.tag
                levels, counted = seeds[id(question)]
                # A store that lost nothing knows what is open, under limits that it knew.
                unsettled = self._unsettled(tag) if question.lost else ()
                answer = BalancesAnswer(seeds=levels, counted=(*unsettled, *counted))
                handed = self._counted[tag][1]
                handed.update(dict.fromkeys(map(level_of, question.wanted), handed_s))
            if not question.answer.done():
                question.answer.set_result(msgspec.msgpack.encode(answer))

    def _sort_out(self, question: Question) -> None:
        """What is to be counted for it: what nobody was just told."""
        asked = question.asked
        known = self._counted.get(asked.tag)
        question.lost = known is None or known[0] != asked.epoch
        if known is None or question.lost:
            known = self._counted[asked.tag] = (asked.epoch, {})
        handed, now_s = known[1], time.monotonic()
        question.wanted = tuple(
            limit
            for limit in asked.limits
            if now_s - handed.get(level_of(limit), -TRUSTED_S) >= TRUSTED_S
        )
        handed.update(dict.fromkeys(map(level_of, question.wanted), now_s))

    def _fail(self, questions: Sequence[Question], failure: BaseException) -> None:
        """Nobody was told anything: whoever asks again is counted from the beginning."""
        for question in questions:
            self._counted.pop(question.asked.tag, None)
            if question.answer.done():
                continue
            if isinstance(failure, Exception):
                question.answer.set_exception(failure)
                question.answer.exception()  # its asker may be gone
            else:
                question.answer.cancel()

    def on_reheld(self, peer: Peer, body: bytes) -> None:
        said = msgspec.msgpack.decode(body, type=Reheld)
        waiting = self._waiting.get(said.number)
        if waiting is not None:
            waiting[0].discard(peer)
            if not waiting[0]:
                waiting[1].set()

    async def _rehold(self, epochs: dict[str, str]) -> None:
        """Every process's open requests; one that does not answer has its settles charged in full."""
        peers = {peer for peer in self._link.peers if peer.hello is not None}
        if not peers:
            return
        self._number += 1
        number, done = self._number, asyncio.Event()
        self._waiting[number] = (peers, done)
        try:
            body = msgspec.msgpack.encode(Rehold(number, epochs))
            self._link.broadcast("rehold", body)
            async with asyncio.timeout(REHOLD_S):
                await done.wait()
        except TimeoutError:
            pass
        finally:
            del self._waiting[number]

    async def _seeds(
        self, questions: Sequence[Question]
    ) -> dict[int, tuple[tuple[Seed, ...], tuple[str, ...]]]:
        """By the question's identity: its seeds, and the ids that they include."""
        now_ms = time.time_ns() // 1_000_000
        paying = {
            each.asked.tenant_id
            for each in questions
            if any(limit.algorithm == "balance" for limit in each.wanted)
        }
        found = {}
        async with self._db.read() as connection:
            balances = await self._levels(connection, paying) if paying else {}
            for question in questions:
                tenant_id = question.asked.tenant_id
                tenant = self._snapshot.tenants.get(tenant_id)
                seeds: list[Seed] = []
                counted: tuple[str, ...] = ()
                for limit in question.wanted if tenant is not None else ():
                    if limit.algorithm == "balance":
                        level, counted = balances[tenant_id]
                        seeds.append(Seed(limit, level))
                    elif tenant is not None:
                        seeds.append(await self._budget(connection, tenant, limit, now_ms))
                found[id(question)] = (tuple(seeds), counted)
        return found

    async def _budget(
        self, connection: AsyncConnection, tenant: TenantDoc, limit: Limit, now_ms: int
    ) -> Seed:
        periods = self._calendars.of(tenant.time_zone).at(limit.window, now_ms)
        begins_ms, ends_ms, name = periods.begins_ms, periods.ends_ms, periods.this_id
        if covering(periods, now_ms) == 1:
            begins_ms, ends_ms, name = periods.ends_ms, periods.next_ends_ms, periods.next_id
        scope = parse_scope(limit.scope)
        used = 0
        if scope is not None:
            used = await spent_micro(connection, scope, tenant.currency, begins_ms, ends_ms)
        return Seed(limit, used, name)
