"""The prober against real sockets: health, signals, contexts, restarts, and what asking costs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.control.probes import Prober, Target, targets_in
from gateway.link.messages import Signals
from gateway.snapshot import ModelDoc, Move, Snapshot, encode_doc
from gateway.wire.fetch import fetch
from routing.signals import EndpointSignals
from tests.support.small_engine import SmallEngine, small_engine, vllm_like
from tests.support.topology import endpoint, pool
from tests.support.until import until


class Bench:
    """A prober at a hundredth of its pace, over targets that a test may change."""

    def __init__(self, *targets: Target) -> None:
        self.targets = list(targets)
        self.told: list[Signals] = []
        self.prober = Prober(
            lambda: self.targets,
            fetch,
            self.told.append,
            environ={},
            monotonic=asyncio.get_running_loop().time,
            chance=random.Random(1).random,
            scrape_every_s=0.01,
            health_every_s=0.02,
        )

    @property
    def seen(self) -> EndpointSignals | None:
        return self.prober.signals().get(1)

    async def until(self, condition: Callable[[EndpointSignals], object]) -> None:
        await until(lambda: self.seen is not None and condition(self.seen))


@asynccontextmanager
async def probing(*targets: Target) -> AsyncIterator[Bench]:
    bench = Bench(*targets)
    running = asyncio.create_task(bench.prober.run())
    try:
        yield bench
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def target(engine: SmallEngine, *upstreams: str, **fields: Any) -> Target:
    return Target(endpoint(1, url=engine.url, **fields), upstreams or ("llama",))


async def test_a_vllm_becomes_signals_that_are_published() -> None:
    async with small_engine() as engine:
        vllm_like(engine, waiting=3.0)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage)
            wanted = EndpointSignals(
                endpoint_id=1,
                healthy=True,
                waiting=3.0,
                running=2.0,
                kv_used_fraction=0.5,
                usage="continuous",
                max_model_len={"llama": 4096},
                template_tokens={"llama": 2},
            )
            await until(lambda: bench.told and bench.told[-1] == Signals((wanted,)))
            assert bench.prober.message() == Signals((wanted,))
            assert bench.prober.counters()[1].prompt_tokens == 70.0


async def test_nothing_is_published_while_nothing_changes() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage)
            await until(lambda: bench.told and bench.told[-1] == bench.prober.message())
            published, scraped = len(bench.told), engine.times("/metrics")
            await until(lambda: engine.times("/metrics") >= scraped + 5)
            assert len(bench.told) == published


async def test_two_failed_probes_make_it_unhealthy_and_one_good_one_healthy() -> None:
    async with small_engine() as engine:
        vllm_like(engine, waiting=3.0)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.healthy and seen.waiting == 3.0)
            before = engine.times("/health")
            engine.answers["/health"] = (503, b"")
            await bench.until(lambda seen: seen.healthy is False)
            assert engine.times("/health") >= before + 2
            assert bench.seen is not None
            assert bench.seen.waiting is None  # a queue behind a dead engine is not known
            engine.answers["/health"] = (200, b"")
            await bench.until(lambda seen: seen.healthy)


async def test_one_failed_probe_is_forgiven() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        answers = iter([503])

        def health(_body: Any) -> tuple[int, bytes]:
            return next(answers, 200), b""

        engine.answers["/health"] = health
        async with probing(target(engine)) as bench:
            await until(lambda: engine.times("/health") >= 4)
            assert bench.told
            assert all(seen.healthy is not False for told in bench.told for seen in told.endpoints)


async def test_an_engine_that_is_not_there_is_unhealthy() -> None:
    async with small_engine() as engine:
        gone = target(engine)
    async with probing(gone) as bench:
        await bench.until(lambda seen: seen.healthy is False)


async def test_the_usage_question_is_asked_once_and_its_tokens_counted() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage == "continuous")
            probed = engine.times("/health")
            await until(lambda: engine.times("/health") >= probed + 5)
            assert engine.times("/v1/chat/completions") == 1
            assert bench.prober.probe_tokens == {1: (7, 1)}


async def test_a_restarted_engine_is_asked_again() -> None:
    async with small_engine() as engine:
        vllm_like(engine, started_s=1.0)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage == "continuous")
            engine.answers["/v1/models"] = (200, b'{"data":[{"id":"llama","max_model_len":8192}]}')
            engine.answers["/metrics"] = (200, b"process_start_time_seconds 2\n")
            await bench.until(lambda seen: seen.max_model_len == {"llama": 8192})
            await until(lambda: bench.prober.probe_tokens == {1: (14, 2)})


async def test_a_model_added_later_is_asked_too_and_the_least_counts() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage == "continuous")
            engine.answers["/v1/chat/completions"] = (200, b'data: {"choices":[{}]}\n\n')
            bench.targets = [target(engine, "llama", "mute")]
            await bench.until(lambda seen: seen.usage == "none")
            assert engine.times("/v1/chat/completions") == 2


async def test_configured_usage_and_draining_endpoints_cost_no_tokens() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        for fields in ({"usage": "final"}, {"draining": True}):
            async with probing(target(engine, **fields)) as bench:
                await bench.until(lambda seen: seen.max_model_len)
        assert engine.times("/v1/chat/completions") == 0


async def test_changed_settings_of_an_endpoint_forget_nothing() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.usage)
            bench.targets = [target(engine, max_in_flight=8)]
            probed = engine.times("/health")
            await until(lambda: engine.times("/health") >= probed + 3)
            assert bench.seen is not None
            assert bench.seen.usage == "continuous"
            assert engine.times("/v1/chat/completions") == 1


async def test_an_endpoint_that_is_gone_is_forgotten_and_asked_no_more() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine)) as bench:
            await bench.until(lambda seen: seen.healthy)
            bench.targets = []
            await until(lambda: bench.told and bench.told[-1] == Signals(()))
            assert bench.seen is None


async def test_an_endpoint_without_metrics_is_healthy_with_no_queue_known() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        async with probing(target(engine, dialect="openai")) as bench:
            await bench.until(lambda seen: seen.healthy and seen.usage)
            assert bench.seen is not None
            assert bench.seen.waiting is None
        assert engine.times("/metrics") == 0


async def test_a_sweep_looks_once_and_costs_nothing() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        bench = Bench(target(engine))
        await bench.prober.sweep()
        assert bench.seen is not None
        assert bench.seen.healthy
        assert engine.times("/health") == 1
        assert engine.times("/v1/chat/completions") == 0
        await bench.prober.close()


async def test_an_endpoint_that_a_sweep_saw_first_is_watched_from_then_on() -> None:
    async with small_engine() as engine:
        vllm_like(engine)
        bench = Bench(target(engine))
        await bench.prober.sweep()
        assert not bench.prober.running
        running = asyncio.create_task(bench.prober.run())
        await until(lambda: engine.times("/metrics") >= 4)
        assert bench.prober.running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not bench.prober.running


def test_targets_join_endpoints_with_the_models_of_their_pool() -> None:
    snapshot = Snapshot()
    members = pool(endpoint(1), endpoint(2))
    docs = [ModelDoc(id=n, name=f"m{n}", upstream=up, pool_id=1) for n, up in ((7, "b"), (8, "a"))]
    moves = [Move("pool", 1, encode_doc(members))]
    moves += [Move("model", doc.id, encode_doc(doc)) for doc in docs]
    snapshot.apply(1, moves)
    assert targets_in(snapshot) == [Target(each, ("a", "b")) for each in members.endpoints]
