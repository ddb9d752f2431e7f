"""Only what an address says is dialled: verified, in time, and past the policy of its IP."""

import asyncio
import os
import shutil
import ssl
import threading

import pytest

from gateway.wire.dial import ConnectFailed, dial, parse_endpoint
from gateway.wire.fetch import FetchFailed, fetch
from gateway.wire.pool import Pool
from tests.support.certificates import self_signed, server_context
from tests.support.engine import serving


async def say_ok(reader, writer):
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright")


class Told:
    """A receiver that remembers."""

    def __init__(self):
        self.body = b""
        self.over = asyncio.Event()

    def on_head(self, status, headers):
        pass

    def on_body(self, data):
        self.body += data

    def on_end(self):
        self.over.set()

    def on_cut(self, failure):
        self.over.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def tls_engine(certificate):
    async with serving(say_ok, ssl=server_context(*certificate)) as address:
        yield address


async def test_tls_with_its_authority_is_verified_and_answers(tls_engine, certificate):
    fetched = await fetch(tls_engine, "GET", "/", ca_file=certificate[0])

    assert (fetched.status, fetched.body) == (200, b"right")


async def test_tls_connections_are_kept_and_used_again(tls_engine, certificate):
    pool = Pool(tls_engine, ca_file=certificate[0])
    upstream = await pool.connect(2)
    for _ in range(3):
        told = Told()
        upstream.send(pool.request_head(b"GET", b"/", (), 0), b"", told)
        await asyncio.wait_for(told.over.wait(), 3)
        assert told.body == b"right"
        pool.give_back(upstream)
        assert pool.acquire() is upstream
    upstream.abort()
    pool.close()


async def test_server_name_is_told_and_only_http_1_is_offered(certificate, monkeypatch):
    """The name is ours to resolve here; what is told in the handshake is the endpoint's."""
    context = server_context(*certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    told = []
    context.sni_callback = lambda _, name, __: told.append(name)
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    def at_home(host, port, **options):
        return resolve("127.0.0.1" if host == "engine.test" else host, port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", at_home)
    async with serving(say_ok, ssl=context) as plain:
        address = parse_endpoint(f"https://engine.test:{plain.port}")
        protocol = await dial(address, Kept, connect_timeout_s=2, ca_file=certificate[0])
        chosen = protocol.transport.get_extra_info("ssl_object").selected_alpn_protocol()
        protocol.transport.abort()
        await protocol.lost.wait()

    assert told == ["engine.test"]
    assert chosen == "http/1.1"


async def test_roots_are_read_once_off_the_loop_and_again_when_the_file_changes(
    tls_engine, certificate, tmp_path, monkeypatch
):
    read = []
    make = ssl.create_default_context

    def noted(cafile=None):
        read.append(threading.current_thread() is threading.main_thread())
        return make(cafile=cafile)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    roots = tmp_path / "roots.pem"
    shutil.copy(certificate[0], roots)
    for _ in range(3):
        await fetch(tls_engine, "GET", "/", ca_file=str(roots))
    os.utime(roots, ns=(1, 1))
    await fetch(tls_engine, "GET", "/", ca_file=str(roots))

    assert read == [False, False]


async def test_tls_without_its_authority_is_refused(tls_engine):
    with pytest.raises(FetchFailed, match="certificate verify failed"):
        await fetch(tls_engine, "GET", "/")


async def test_tls_for_another_name_is_refused(tls_engine, certificate):
    other = parse_endpoint(f"https://localhost:{tls_engine.port}")
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        await dial(other, asyncio.Protocol, connect_timeout_s=2, ca_file=certificate[0])


async def test_authority_file_that_is_missing_is_a_failed_connect(tls_engine, tmp_path):
    with pytest.raises(ConnectFailed):
        await dial(
            tls_engine, asyncio.Protocol, connect_timeout_s=2, ca_file=str(tmp_path / "none.pem")
        )


async def test_engine_that_speaks_no_tls_is_a_failed_connect(certificate):
    async def plain_http(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with serving(plain_http) as plain:
        address = parse_endpoint(f"https://127.0.0.1:{plain.port}")
        with pytest.raises(ConnectFailed) as failed:
            await dial(address, asyncio.Protocol, connect_timeout_s=2, ca_file=certificate[0])

    assert not failed.value.timeout


async def test_handshake_that_hangs_times_out():
    async def silent(reader, writer):
        await reader.read()

    async with serving(silent) as plain:
        address = parse_endpoint(f"https://127.0.0.1:{plain.port}")
        with pytest.raises(ConnectFailed) as failed:
            await dial(address, asyncio.Protocol, connect_timeout_s=0.1)

    assert failed.value.timeout


class Kept(asyncio.Protocol):
    def __init__(self):
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        self.lost.set()


async def test_address_that_the_policy_passes_is_dialled():
    judged = []
    async with serving(say_ok) as plain:
        protocol = await dial(plain, Kept, connect_timeout_s=1, policy=judged.append)
        protocol.transport.abort()
        await protocol.lost.wait()

    assert judged == ["127.0.0.1"]


async def test_policy_judges_the_address_and_not_the_name():
    judged = []

    def refuse(ip):
        judged.append(ip)
        raise ConnectFailed("a loopback address is not allowed")

    async with serving(say_ok) as plain:
        address = parse_endpoint(f"http://localhost:{plain.port}")
        with pytest.raises(ConnectFailed, match="not allowed"):
            await dial(address, asyncio.Protocol, connect_timeout_s=1, policy=refuse)

    assert judged[0] in {"127.0.0.1", "::1"}


async def test_name_that_does_not_resolve_is_a_failed_connect():
    with pytest.raises(ConnectFailed) as failed:
        await dial(
            parse_endpoint("http://no.such.name.invalid"), asyncio.Protocol, connect_timeout_s=2
        )

    assert "cannot connect" in failed.value.reason


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://engine", ("engine", 80, False, "", b"engine")),
        ("http://ENGINE:8000/", ("engine", 8000, False, "", b"engine:8000")),
        ("https://engine", ("engine", 443, True, "", b"engine")),
        ("https://engine:80/a/b/", ("engine", 80, True, "/a/b", b"engine:80")),
        ("http://[2001:db8::1]:8000", ("2001:db8::1", 8000, False, "", b"[2001:db8::1]:8000")),
        ("http://bücher.test", ("bücher.test", 80, False, "", b"xn--bcher-kva.test")),
    ],
)
def test_address_is_read(url, wanted):
    address = parse_endpoint(url)

    assert (
        address.host, address.port, address.tls, address.prefix, address.host_header,
    ) == wanted  # fmt: skip


def test_credentials_in_a_url_are_refused_without_being_repeated():
    with pytest.raises(ValueError, match="api_key_env") as refused:
        parse_endpoint("http://user:secret@engine")

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://engine:99999", "http://engine:x", "http://[::1"])
def test_address_that_cannot_be_is_refused(url):
    with pytest.raises(ValueError):  # noqa: PT011 -- the parser's own words
        parse_endpoint(url)


async def test_proxies_of_the_environment_are_nobodys_business(tls_engine, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(say_ok) as plain:
        assert (await fetch(plain, "GET", "/")).body == b"right"
