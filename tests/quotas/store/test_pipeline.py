"""The one connection: order of replies, time-outs, logins, and coming back."""

import asyncio
import contextlib
import random
import ssl
import time
from pathlib import Path

import hiredis
import pytest
import uvloop

from quotas.errors import QuotaError, StoreUnavailable
from quotas.store.pipeline import Pipeline, Target, parse_url
from tests.support.until import until
from tests.support.valkey import free_port

CERTIFICATE = Path(__file__).with_name("loopback.pem")


@contextlib.asynccontextmanager
async def opening():
    """Opens pipelines, and closes them at the end."""
    pipelines = []

    async def open_one(url, **options):
        pipeline = Pipeline(parse_url(url), **{"timeout_s": 1.0, **options})
        pipelines.append(pipeline)
        await pipeline.start()
        return pipeline

    try:
        yield open_one
    finally:
        for pipeline in pipelines:
            await pipeline.close()


@pytest.fixture
async def opened():
    async with opening() as open_one:
        yield open_one


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://h", Target(host="h")),
        ("redis://h:7000/3", Target(host="h", port=7000, db=3)),
        ("redis://:p%40ss@h", Target(host="h", password="p@ss")),
        ("rediss://u:p@h:1", Target(host="h", port=1, tls=True, username="u", password="p")),
        ("redis://[::1]:7", Target(host="::1", port=7)),
        ("unix:///run/v.sock", Target(path="/run/v.sock")),
        (
            "unix://u:p@/run/v.sock?db=2",
            Target(path="/run/v.sock", username="u", password="p", db=2),
        ),
    ],
)
def test_url_says_where_and_who(url, target):
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    ["", "http://h", "redis://", "redis://h:port", "redis://:s3cret@h/x", "unix://", "h:6379"],
)
def test_malformed_url_is_refused_without_repeating_it(url):
    with pytest.raises(QuotaError) as refused:
        parse_url(url)

    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("kind", ["unix_url", "tcp_url"])
async def test_replies_come_in_the_order_of_calls(valkey, opened, kind):
    pipeline = await opened(getattr(valkey, kind))

    replies = await asyncio.gather(*(pipeline.call(("ECHO", n)) for n in range(500)))

    assert replies == [str(n).encode() for n in range(500)]


async def test_one_tick_of_calls_is_one_write(valkey, opened):
    pipeline = await opened(valkey.unix_url)
    reads = valkey.admin.info("stats")["total_reads_processed"]

    await asyncio.gather(*(pipeline.call(("PING",)) for _ in range(50)))

    # One for the batch, one or two for the two questions about it.
    assert valkey.admin.info("stats")["total_reads_processed"] - reads <= 3


async def test_what_nobody_waits_for_rides_with_the_next_call_or_goes_soon(valkey, opened):
    pipeline = await opened(valkey.unix_url)
    writes = []
    connection = pipeline._connection
    write = connection._write
    connection._write = lambda: writes.append(len(connection._unwritten)) or write()
    told = []

    pipeline.send(("ECHO", "a"), told.append, later=True)
    pipeline.send(("ECHO", "b"), told.append, later=True)
    await asyncio.sleep(0)
    assert (writes, told) == ([], [])
    assert await pipeline.call(("ECHO", "c")) == b"c"  # and what was told before it came before it
    assert (writes, told) == ([3], [b"a", b"b"])

    pipeline.send(("ECHO", "d"), told.append, later=True)
    began_s = time.monotonic()
    await until(lambda: b"d" in told, 1.0)
    assert time.monotonic() - began_s < 0.2
    assert writes == [3, 1]


async def test_two_thousand_cancelled_callers_leave_nobody_a_wrong_reply(valkey, opened):
    chance = random.Random(7)
    pipeline = await opened(valkey.tcp_url)
    wrong = cancelled = 0

    async def ask(n):
        nonlocal wrong
        wrong += await pipeline.call(("ECHO", n)) != str(n).encode()

    for start in range(0, 4000, 80):
        tasks = [asyncio.create_task(ask(start + n)) for n in range(80)]
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 48):
            cancelled += task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert cancelled >= 2000
    assert wrong == 0
    assert await pipeline.call(("ECHO", "end")) == b"end"


async def test_late_replies_are_dropped_and_later_callers_get_their_own(own_valkey, opened):
    pipeline = await opened(own_valkey.unix_url, timeout_s=0.1)
    await asyncio.sleep(0.45)  # idle is not stalled, however long
    own_valkey.pause()

    late = await asyncio.gather(
        *(pipeline.call(("ECHO", n)) for n in range(20)), return_exceptions=True
    )
    own_valkey.resume()

    assert {type(reply) for reply in late} == {StoreUnavailable}
    assert await pipeline.call(("ECHO", "mine")) == b"mine"
    assert pipeline.connected


async def test_no_call_outlives_its_time_while_the_server_hangs(own_valkey, opened):
    pipeline = await opened(own_valkey.tcp_url, timeout_s=0.1)
    own_valkey.pause()
    slowest_s = 0.0
    while pipeline.connected:  # it is given up after four time-outs of silence
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await pipeline.call(("PING",))
        slowest_s = max(slowest_s, time.monotonic() - started_s)

    with pytest.raises(StoreUnavailable):
        await pipeline.call(("PING",))
    own_valkey.resume()

    assert slowest_s < 0.2
    await until(lambda: pipeline.connected)
    assert await pipeline.call(("PING",)) == b"PONG"


async def test_killed_server_fails_calls_at_once_and_is_found_again(own_valkey, opened):
    ups = []
    pipeline = await opened(own_valkey.unix_url, up=lambda: ups.append(time.monotonic()))
    own_valkey.kill()
    await until(lambda: not pipeline.connected)

    with pytest.raises(StoreUnavailable):
        await pipeline.call(("PING",))
    own_valkey.start()
    await until(lambda: pipeline.connected)

    assert await pipeline.call(("PING",)) == b"PONG"
    assert len(ups) == 2


async def test_error_reply_fails_its_own_caller_only(valkey, opened):
    pipeline = await opened(valkey.unix_url)

    replies = await asyncio.gather(
        pipeline.call(("ECHO", 1)),
        pipeline.call(("NO_SUCH_COMMAND",)),
        pipeline.call(("ECHO", 2)),
        return_exceptions=True,
    )

    assert (replies[0], replies[2]) == (b"1", b"2")
    assert isinstance(replies[1], hiredis.ReplyError)


async def test_password_and_database_are_used(valkey, opened):
    valkey.admin.acl_setuser(
        "teller", enabled=True, passwords=["+s3 cret"], keys=["*"], commands=["+@all"]
    )

    pipeline = await opened(f"redis://teller:s3%20cret@127.0.0.1:{valkey.port}/2")

    assert await pipeline.call(("ACL", "WHOAMI")) == b"teller"
    assert b" db=2 " in await pipeline.call(("CLIENT", "INFO"))


async def test_wrong_password_is_unavailability_that_names_no_secret(valkey, opened):
    with pytest.raises(StoreUnavailable) as refused:
        await opened(f"redis://nobody:s3cret@127.0.0.1:{valkey.port}")

    assert "WRONGPASS" in str(refused.value)
    assert "s3cret" not in str(refused.value)


async def test_nobody_listening_is_unavailability(opened):
    with pytest.raises(StoreUnavailable):
        await opened(f"redis://127.0.0.1:{free_port()}")


async def test_server_that_never_answers_is_unavailability(own_valkey, opened):
    own_valkey.pause()

    with pytest.raises(StoreUnavailable):
        await opened(own_valkey.tcp_url)

    own_valkey.resume()


async def test_bytes_that_are_not_replies_end_the_connection(opened):
    async def babble(reader, writer):
        await reader.read(100)
        writer.write(b"+PONG\r\n")
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        pipeline = await opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(StoreUnavailable):
            await pipeline.call(("PING",))
        await pipeline.close()


async def test_connection_that_closes_right_after_the_greeting_hangs_nobody(opened):
    async def greet_and_go(reader, writer):
        await reader.read(100)
        writer.write(b"+PONG\r\n")
        writer.close()

    server = await asyncio.start_server(greet_and_go, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def open_and_call():
            pipeline = await opened(url)
            await pipeline.call(("PING",))

        with pytest.raises(StoreUnavailable):
            await open_and_call()


async def test_tls_is_spoken_and_the_certificate_checked(valkey, opened, monkeypatch):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def relay(reader, writer):
        up_reader, up_writer = await asyncio.open_unix_connection(str(valkey.socket))

        async def pump(source, sink):
            while data := await source.read(4096):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(StoreUnavailable):
            await opened(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        pipeline = await opened(url)
        assert await pipeline.call(("ECHO", "secret")) == b"secret"
        await pipeline.close()


@pytest.mark.parametrize(
    "scenario",
    [
        test_two_thousand_cancelled_callers_leave_nobody_a_wrong_reply,
        test_late_replies_are_dropped_and_later_callers_get_their_own,
        test_no_call_outlives_its_time_while_the_server_hangs,
        test_killed_server_fails_calls_at_once_and_is_found_again,
    ],
    ids=lambda scenario: scenario.__name__.removeprefix("test_"),
)
def test_same_holds_on_uvloop(own_valkey, scenario):
    """The loop that data processes run: timers and lost connections come in another order."""

    async def main():
        async with opening() as open_one:
            await scenario(own_valkey, open_one)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
