"""Random histories of the two stores side by side, on a clock of their own.

Every step goes to Redis and to the in-process store and must be answered the same, to the unit and
the millisecond; and a third account, kept here from the answers alone, must agree with the levels
that both then show: what is held is what open reservations hold, money is what was seeded less what
was settled, nothing is above its capacity, nothing is negative that must not be.

The server's clock is a key that this writes: the steps are the product's but for where TIME comes
from. Used by ``loadtests/limits.py`` and, in a short form, by the suite.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator

import redis as blocking
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from quotas.calendar import Periods
from quotas.errors import ReservationRefused
from quotas.limits import Charge, Limit
from quotas.ports import Seed, Settlement
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from quotas.store.steps import LIBRARY, read_part

DAY_MS = 86_400_000
BEGIN_MS = 1_800_000_000_000
SCOPES = ("t1", "p1", "k1")
#: Requests open at once; each place's request gets another id when it has ended.
PLACES = 6
#: (capacity, per_minute) of the limits, as configuration changes them: fast, slow, and still ones.
FIGURES = [(100, 60), (100, 6_000_000), (250, 90_000), (60, 7), (1000, 60_000_000), (50, 0)]
SEEDED = 100_000
#: Longer than all jumps of the clock together: to lapse is not the scripts' own time to tell.
TTL_S = 10_000_000

_tags = itertools.count()


class Clock:
    """Unix ms, for both stores."""

    def __init__(self, admin: blocking.Redis) -> None:
        self._admin = admin
        self.now_ms = BEGIN_MS
        self.move(0)

    def move(self, ms: int) -> None:
        self.now_ms += ms
        seconds, rest = divmod(self.now_ms, 1000)
        self._admin.hset("tf:clock", mapping={"s": seconds, "us": rest * 1000})


@contextlib.contextmanager
def clocked_steps() -> Iterator[None]:
    """Within, stores are made whose steps read the clock's key."""

    def read(part: str) -> bytes:
        source = read_part(part)
        assert source.count(b"call('TIME')") == (part == "levels")
        return source.replace(b"call('TIME')", b"call('HMGET', 'tf:clock', 's', 'us')")

    LIBRARY.load(read)
    try:
        yield
    finally:
        LIBRARY.load(read_part)


def periods(now_ms: int) -> Periods:
    """Days, the first of them five minutes behind: as a gateway passes them."""
    first = (now_ms - 300_000) // DAY_MS
    return Periods(
        f"d{first}",
        first * DAY_MS,
        (first + 1) * DAY_MS,
        f"d{first + 1}",
        (first + 2) * DAY_MS,
    )


def charges_of(
    figures: list[tuple[int, int]], amounts: tuple[int, int, int, int], now_ms: int, *, shadow: bool
) -> tuple[Charge, ...]:
    """Tokens a minute of three scopes, requests, tokens a day, holds, a balance and a budget.

    ``amounts``: tokens, requests, holds, money.
    """
    tokens, requests, holds, money = amounts
    days = periods(now_ms)
    made = [
        Charge(Limit(scope, scope, "tokens", "bucket", capacity, per_minute, 1), tokens)
        for scope, (capacity, per_minute) in zip(SCOPES, figures, strict=True)
    ]
    capacity, per_minute = figures[0]
    return (
        *made,
        Charge(Limit("t1", "t1", "requests", "bucket", capacity, per_minute, 1), requests),
        Charge(
            Limit("k1", "k1", "tokens", "quota", 3 * capacity, 0, 1, "day", shadow), tokens, days
        ),
        Charge(Limit("k1", "k1", "concurrency", "concurrency", 4, 0, 1, "now"), holds),
        Charge(Limit("t1", "t1", "money", "balance", 10 * capacity, 0, 1, "now"), money),
        Charge(Limit("p1", "p1", "money", "quota", 50 * capacity, 0, 1, "day"), money, days),
    )


QUOTA, HOLDS, BALANCE, BUDGET = 4, 5, 6, 7

few_st = st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 2), st.integers(0, 200))
amounts_st = st.one_of(
    few_st,
    few_st,
    st.tuples(st.integers(0, 120), st.integers(0, 60), st.integers(0, 5), st.integers(0, 5_000)),
)
figures_st = st.lists(st.sampled_from(FIGURES), min_size=3, max_size=3)
places_st = st.integers(0, PLACES - 1)
rarely_st = st.integers(0, 5).map(lambda n: n == 5)


class History(RuleBasedStateMachine):
    """``run``, ``open_redis`` and ``admin`` are set by ``walk``."""

    run: Callable
    open_redis: Callable
    admin: blocking.Redis
    steps = 0

    @initialize()
    def begin(self) -> None:
        self.tag = f"h{next(_tags)}"
        self.clock = Clock(self.admin)
        self.redis = self.run(self.open_redis())
        self.memory = MemoryStore(lambda: self.clock.now_ms)
        self.epochs: dict[str, str] = {}
        self.turns = [0] * PLACES
        self.lives: dict[str, str] = {}  # id -> "held", "expired", "ended", of this life
        self.held: dict[str, tuple[tuple[Charge, ...], Periods, bool]] = {}
        self.settled = 0  # money, since the seed
        self.seed_money()

    def teardown(self) -> None:
        if hasattr(self, "redis"):
            self.run(self.redis.close())

    def both(self, call: Callable) -> object:
        """One awaited call to each; what they answered, which must be the same."""
        answers = []
        for store in (self.redis, self.memory):
            try:
                answers.append(self.run(call(store)))
            except ReservationRefused:
                answers.append("refused")
        first, second = answers
        if hasattr(first, "epoch") and hasattr(second, "epoch"):
            self.epochs = {"redis": first.epoch, "memory": second.epoch}
            shown = [
                (each.admitted, each.levels, each.binding, each.retry_after_ms, each.reason,
                 each.shadowed)
                for each in (first, second)
            ]  # fmt: skip
            assert shown[0] == shown[1]
        else:
            assert first == second
        return first

    def each(self, step: Callable) -> None:
        """A queued step to each, acknowledged."""
        step(self.redis)
        assert self.run(self.redis.flush(5))
        step(self.memory)

    def charges(self, figures, amounts, *, shadow=False):
        return charges_of(figures, amounts, self.clock.now_ms, shadow=shadow)

    def seed_money(self) -> None:
        charges = self.charges([FIGURES[0]] * 3, (0, 0, 0, 0))
        days = charges[BUDGET].periods
        seeds = (
            Seed(charges[BALANCE].limit, SEEDED),
            Seed(charges[BUDGET].limit, 0, days.this_id),
        )
        for store in (self.redis, self.memory):
            epoch = self.epochs[store.name] = self.run(store.epoch(self.tag))
            assert self.run(store.seed(self.tag, epoch, seeds))
        self.settled = 0

    def settlement(self, store, name, charged, epoch=None):
        known = self.epochs.get(store.name, "none") if epoch is None else epoch
        return Settlement(self.tag, name, known, charged, {})

    def name_at(self, place: int) -> str:
        return f"r{place}-{self.turns[place]}"

    def name_of_open(self, place: int, *, any_at_all: bool) -> str:
        """An open request's id where there is one."""
        held = sorted(self.held)
        return self.name_at(place) if any_at_all or not held else held[place % len(held)]

    @rule(place=places_st, figures=figures_st, amounts=amounts_st, shadow=st.booleans(),
          ended=rarely_st)  # fmt: skip
    def reserve(self, place, figures, amounts, shadow, ended) -> None:
        """``ended``: an id that has ended asks again; else the place's next one does."""
        History.steps += 1
        if not ended and self.lives.get(self.name_at(place)) == "ended":
            self.turns[place] += 1
        name = self.name_at(place)
        charges = self.charges(figures, amounts, shadow=shadow)
        verdict = self.both(lambda store: store.reserve(self.tag, name, charges, TTL_S))
        if verdict != "refused" and verdict.admitted and name not in self.lives:
            self.lives[name] = "held"
            self.held[name] = (charges, periods(self.clock.now_ms), QUOTA in verdict.shadowed)

    @rule(place=places_st, figures=figures_st, amounts=few_st)
    def reserve_few(self, place, figures, amounts) -> None:
        self.reserve(place, figures, amounts, shadow=False, ended=False)

    @rule(place=places_st, figures=figures_st, amounts=few_st)
    def reserve_and_look(self, place, figures, amounts) -> None:
        self.reserve(place, figures, amounts, shadow=True, ended=False)
        self.look(figures, amounts)

    @rule(place=places_st, figures=figures_st, amounts=amounts_st, missing=st.integers(0, 4),
          times=st.integers(1, 2), any_at_all=rarely_st)  # fmt: skip
    def settle(self, place, figures, amounts, missing, times, any_at_all) -> None:
        History.steps += 1
        name = self.name_of_open(place, any_at_all=any_at_all)
        charged = self.charges(figures, amounts)[missing:]
        for _ in range(times):
            self.each(lambda store: store.settle(self.settlement(store, name, charged)))
        if self.lives.get(name) in ("held", "expired"):
            self.settled += amounts[3]
            self.end(name)

    @rule(name=st.sampled_from(["x1", "x2", "x3"]), figures=figures_st, amounts=amounts_st)
    def settle_of_another_life(self, name, figures, amounts) -> None:
        History.steps += 1
        charged = self.charges(figures, amounts)
        self.each(lambda store: store.settle(self.settlement(store, name, charged, "another")))
        if name not in self.lives:
            self.lives[name] = "ended"
            self.settled += amounts[3]

    @rule(place=places_st, any_at_all=rarely_st)
    def release(self, place, any_at_all) -> None:
        History.steps += 1
        name = self.name_of_open(place, any_at_all=any_at_all)
        self.each(lambda store: store.release(self.tag, name))
        if self.lives.get(name) in (None, "held", "expired"):
            self.end(name)

    @rule(place=places_st, any_at_all=rarely_st)
    def expire(self, place, any_at_all) -> None:
        History.steps += 1
        name = self.name_of_open(place, any_at_all=any_at_all)
        self.each(lambda store: store.expire(self.tag, name))
        if self.lives.get(name) == "held":
            self.lives[name] = "expired"

    @rule(ms=st.one_of(st.integers(0, 3_000), st.sampled_from([-60_000, 60_000, DAY_MS // 3])))
    def let_the_clock_jump(self, ms) -> None:
        History.steps += 1
        self.clock.move(ms)

    @rule(now=rarely_st)
    def crash(self, now) -> None:
        """The process that spoke to Redis dies and another of its name comes."""
        History.steps += 1
        if not now:
            return
        self.run(self.redis.close())
        self.redis = self.run(self.open_redis())

    @rule(amount=st.integers(-500, 500), name=st.sampled_from(["a1", "a2", "a3"]))
    def adjust(self, amount, name) -> None:
        History.steps += 1
        limit = self.charges([FIGURES[0]] * 3, (0, 0, 0, 0))[BALANCE].limit
        for store in (self.redis, self.memory):
            epoch = self.run(store.epoch(self.tag))
            assert self.run(store.adjust(self.tag, epoch, name, limit, amount))
        if name not in self.lives:
            self.lives[name] = "ended"
            self.settled -= amount

    @rule(again=st.booleans(), now=rarely_st)
    def flush(self, again, now) -> None:
        """Everything is lost; some requests are held again before the money is rebuilt."""
        History.steps += 1
        if not now:
            return
        self.admin.flushall()
        self.clock.move(0)
        self.memory = MemoryStore(lambda: self.clock.now_ms)
        held, self.held, self.lives = self.held, {}, {}
        for name, (charges, _, _) in held.items():
            if again:
                for store in (self.redis, self.memory):
                    epoch = self.run(store.epoch(self.tag))
                    assert self.run(store.rehold(self.tag, name, epoch, charges, TTL_S))
                self.lives[name] = "held"
                self.held[name] = (charges, charges[QUOTA].periods, False)
        self.seed_money()

    @rule(figures=figures_st, amounts=amounts_st)
    def look(self, figures, amounts) -> None:
        History.steps += 1
        charges = self.charges(figures, amounts)
        seen = [self.run(store.inspect(self.tag, charges)) for store in (self.redis, self.memory)]
        for of_redis, of_memory in zip(seen[0].gauges, seen[1].gauges, strict=True):
            assert (of_redis.used, of_redis.held, of_redis.balance) == (
                of_memory.used,
                of_memory.held,
                of_memory.balance,
            )
        first = seen[0]
        for charge, level in zip(charges, first.verdict.levels, strict=True):
            if charge.limit.algorithm != "balance":
                assert level.remaining <= charge.limit.capacity
        gauges = first.gauges
        assert gauges[HOLDS].used == self.sum_of(HOLDS, ("held",))
        assert gauges[BALANCE].held == self.sum_of(BALANCE, ("held", "expired"))
        assert gauges[BALANCE].balance == SEEDED - self.settled
        assert gauges[QUOTA].used >= 0 <= gauges[QUOTA].held
        assert gauges[BUDGET].used >= 0 <= gauges[BUDGET].held
        assert gauges[BUDGET].held <= self.sum_of(BUDGET, ("held", "expired"))

    def sum_of(self, index: int, states: tuple[str, ...]) -> int:
        return sum(
            charges[index].amount
            for name, (charges, _, _) in self.held.items()
            if self.lives[name] in states
        )

    def end(self, name: str) -> None:
        self.lives[name] = "ended"
        self.held.pop(name, None)


def walk(url: str, admin: blocking.Redis, *, examples: int, steps: int, chance: int) -> int:
    """Walk so many histories; the number of steps taken. Raises ``AssertionError`` with the history."""
    History.steps = 0
    with clocked_steps(), asyncio.Runner() as runner:

        async def open_redis() -> RedisStore:
            store = RedisStore(url, name="redis", owner="o1", timeout_s=5.0)
            await store.start()
            return store

        members = {"run": staticmethod(runner.run), "open_redis": staticmethod(open_redis)}
        machine = type("History", (History,), {**members, "admin": admin})
        seed(chance)(machine)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    return History.steps
