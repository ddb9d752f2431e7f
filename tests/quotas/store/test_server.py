"""One server: a backlog beside calls, jobs that are sent until acknowledged."""

import asyncio

import pytest

from quotas.errors import StoreUnavailable
from quotas.store.pipeline import parse_url
from quotas.store.server import WINDOW, Job, Server
from quotas.store.steps import CLAIM, EPOCH, UNCLAIM
from tests.support.until import until

KEYS = ["tf2:{t1}:c:name"]


@pytest.fixture
async def opened():
    servers = []

    async def open_one(url, acknowledged=lambda job, reply: None):
        server = Server(parse_url(url), timeout_s=0.3, acknowledged=acknowledged, up=lambda: None)
        servers.append(server)
        await server.start()
        return server

    yield open_one
    for server in servers:
        await server.close()


async def test_call_is_answered_in_front_of_a_backlog(own_valkey, opened):
    acknowledged = []
    server = await opened(own_valkey.unix_url, lambda job, reply: acknowledged.append(job))
    jobs = [Job(UNCLAIM, KEYS, (f"r{n}",), None) for n in range(4 * WINDOW)]
    for job in jobs:
        server.queue(job)

    await server.call(EPOCH, ["tf2:{t1}:epoch"], ("nonce",))

    assert WINDOW <= len(acknowledged) < len(jobs)
    await until(lambda: acknowledged == jobs)


async def test_jobs_queued_while_the_server_is_away_are_sent_when_it_is_back(own_valkey, opened):
    acknowledged = []
    server = await opened(
        own_valkey.unix_url, lambda job, reply: acknowledged.append(job.arguments)
    )
    own_valkey.kill()
    await until(lambda: not server.connected)
    server.queue(Job(CLAIM, KEYS, ("r1", 60_000), None))
    with pytest.raises(StoreUnavailable):
        await server.call(CLAIM, KEYS, ("r2", 60_000))
    own_valkey.start()

    await until(lambda: acknowledged == [("r1", 60_000)])

    assert (await server.call(CLAIM, KEYS, ("r3", 60_000)))[1] == b"r1"


async def test_what_is_told_once_is_dropped_while_the_server_is_away(own_valkey, opened):
    server = await opened(own_valkey.unix_url)
    own_valkey.kill()
    await until(lambda: not server.connected)

    server.tell(CLAIM, KEYS, ("r1", 60_000))

    own_valkey.start()
    await until(lambda: server.connected)
    await asyncio.sleep(0)
    assert (await server.call(CLAIM, KEYS, ("r2", 60_000)))[1] == b"r2"
