"""Both stores side by side through random histories: every verdict and level is the same.

Redis goes first; the in-process store is then set to the very millisecond the script saw, so that
equality is exact and its arithmetic (the reference) is checked against the Lua.
"""

import asyncio
import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from quotas.errors import ReservationRefused
from quotas.limits import Charge, Limit
from quotas.store.memory import MemoryStore
from quotas.store.redis import RedisStore
from tests.support.limits import settlement

SCOPES = ("t1", "p1", "k1")
IDS = [f"r{n}" for n in range(12)]
#: (capacity, per_minute) of the limits, as configuration changes them. Fast ones fill up within a
#: run, slow ones stay in debt.
FIGURES = [(100, 60), (100, 6_000_000), (250, 90_000), (40, 7), (1000, 60_000_000), (5, 0)]

amounts = st.integers(0, 120)
figures = st.lists(st.sampled_from(FIGURES), min_size=3, max_size=3)

_tags = itertools.count()


def charges_of(figures, tokens, requests, holds):
    charges = []
    for scope, (capacity, per_minute) in zip(SCOPES, figures, strict=True):
        tokens_limit = Limit(scope, scope, "tokens", "bucket", capacity, per_minute, 1)
        charges.append(Charge(tokens_limit, tokens))
    capacity, per_minute = figures[0]
    charges.append(
        Charge(Limit("t1", "t1", "requests", "bucket", capacity, per_minute, 1), requests)
    )
    charges.append(Charge(Limit("k1", "k1", "concurrency", "concurrency", 4, 0, 1), holds))
    return tuple(charges)


class Agreement(RuleBasedStateMachine):
    """``run`` and ``redis`` are set by the test that owns the server."""

    run = None
    redis: RedisStore

    @initialize()
    def begin(self):
        self.tag = f"agree{next(_tags)}"
        self.memory = MemoryStore(lambda: self.redis.clock_ms)
        self.epochs = {}

    def both(self, reservation_id, charges):
        """Reserve in both; the verdicts without their epochs, and the stores' epochs."""
        answers = []
        for store in (self.redis, self.memory):
            try:
                verdict = self.run(store.reserve(self.tag, reservation_id, charges, 60))
            except ReservationRefused:
                answers.append("ended before")
            else:
                self.epochs[store.name] = verdict.epoch
                shown = (verdict.admitted, verdict.levels, verdict.binding, verdict.retry_after_ms)
                answers.append(shown)
        assert answers[0] == answers[1]
        return answers[0]

    def each(self, step):
        """A queued step in both, acknowledged."""
        step(self.redis)
        assert self.run(self.redis.flush(2))
        step(self.memory)

    @rule(name=st.sampled_from(IDS), f=figures, tokens=amounts, requests=amounts,
          holds=st.integers(0, 5))  # fmt: skip
    def reserve(self, name, f, tokens, requests, holds):
        self.both(name, charges_of(f, tokens, requests, holds))

    @rule(name=st.sampled_from(IDS), f=figures, tokens=st.integers(0, 400), requests=amounts,
          missing=st.integers(0, 4))  # fmt: skip
    def settle(self, name, f, tokens, requests, missing):
        charged = charges_of(f, tokens, requests, 1)[missing:]
        self.each(
            lambda store: store.settle(
                settlement(self.tag, name, self.epochs.get(store.name, "none"), *charged)
            )
        )

    @rule(name=st.sampled_from(IDS), f=figures, tokens=amounts)
    def settle_of_another_life(self, name, f, tokens):
        charged = charges_of(f, tokens, 1, 1)
        self.each(lambda store: store.settle(settlement(self.tag, name, "another", *charged)))

    @rule(name=st.sampled_from(IDS))
    def release(self, name):
        self.each(lambda store: store.release(self.tag, name))

    @rule(name=st.sampled_from(IDS))
    def expire(self, name):
        self.each(lambda store: store.expire(self.tag, name))

    @rule(f=figures)
    def look(self, f):
        charges = charges_of(f, 0, 0, 0)
        _, levels, _, _ = self.both(f"look{next(_tags)}", charges)
        for charge, level in zip(charges, levels, strict=True):
            assert level.remaining <= charge.limit.capacity
        assert levels[-1].remaining >= 0


def test_stores_agree_on_every_verdict_and_level(valkey):
    with asyncio.Runner() as runner:
        redis = RedisStore(valkey.unix_url, name="redis", owner="o1", timeout_s=2.0)
        runner.run(started(redis))
        machine = type("Agreement", (Agreement,), {"run": staticmethod(runner.run), "redis": redis})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=60,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(redis.close())


async def started(store):
    await store.start()
