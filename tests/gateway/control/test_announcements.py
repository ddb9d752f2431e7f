"""A word to the other hosts: heard at once, lost without harm."""

import asyncio
import contextlib

from gateway.control.announcements import Announcements
from tests.support.until import until
from tests.support.valkey_cluster import valkey_cluster

__all__ = ["valkey_cluster"]


class Host:
    def __init__(self, url):
        self.polls = 0
        self.announcements = Announcements(url, self.poll)
        self.listening = asyncio.ensure_future(self.announcements.run())

    async def poll(self):
        self.polls += 1

    async def close(self):
        self.listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.listening
        await self.announcements.close()


async def test_change_of_one_host_makes_the_others_poll(valkey):
    hosts = [Host(valkey.tcp_url), Host(valkey.tcp_url)]
    await until(lambda: all(host.polls for host in hosts))  # each polls once it listens
    before = hosts[1].polls
    await hosts[0].announcements.announce(7)

    await until(lambda: hosts[1].polls > before, 1.0)
    for host in hosts:
        await host.close()


async def test_servers_of_a_cluster_tell_each_other(valkey_cluster):
    first, second, _ = valkey_cluster.nodes
    hosts = [
        Host(f"redis://127.0.0.1:{a.port},127.0.0.1:{b.port}?cluster=true")
        for a, b in ((first, second), (second, first))
    ]
    await until(lambda: all(host.polls for host in hosts))
    before = hosts[1].polls
    await hosts[0].announcements.announce(7)

    await until(lambda: hosts[1].polls > before, 1.0)
    for host in hosts:
        await host.close()


async def test_redis_that_is_away_costs_no_error():
    host = Host("redis://127.0.0.1:1")
    await host.announcements.announce(7)
    assert not host.listening.done()
    await host.close()


async def test_lost_connection_is_made_again_and_a_poll_covers_the_gap(own_valkey):
    host = Host(own_valkey.tcp_url)
    await until(lambda: host.polls == 1)
    own_valkey.admin.client_kill_filter(_type="pubsub")

    await until(lambda: host.polls == 2)
    await host.close()
