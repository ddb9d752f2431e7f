"""Client and server of the link over a real unix socket: messages, asks, partings, returns."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.link.client import LinkAway, LinkClient
from gateway.link.messages import Hello
from gateway.link.server import ASKS_MAX, LinkServer, Peer
from tests.support.until import until

FORBIDDEN = "sqlalchemy, starlette, pydantic, prometheus_client"


async def listen(server: LinkServer, path: Path) -> None:
    path.unlink(missing_ok=True)  # noqa: ASYNC240 -- microseconds
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    await server.serve(sock)


@asynccontextmanager
async def running(client: LinkClient) -> AsyncIterator[None]:
    task = asyncio.create_task(client.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def client_of(path: Path, seen: list[bytes], version: int = 3) -> LinkClient:
    return LinkClient(str(path), lambda: Hello(0, 42, version), {"moves": seen.append})


async def test_hello_comes_first_and_messages_in_order(tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []

    def hello(peer: Peer, body: bytes) -> None:
        heard.append(("hello", b""))
        for n in range(3):
            peer.send("moves", b"%d" % n)

    def version(peer: Peer, body: bytes) -> None:
        heard.append(("version", body))

    server = LinkServer({"hello": hello, "version": version})
    await listen(server, tmp_path / "l")
    seen: list[bytes] = []
    client = client_of(tmp_path / "l", seen)
    made_s = client.heard_s
    async with running(client):
        await until(lambda: len(seen) == 3)
        assert client.connected
        assert client.heard_s > made_s
        client.send("version", b"v")
        await until(lambda: len(heard) == 2)
        (peer,) = server.peers
        assert peer.hello == Hello(0, 42, 3)
        assert peer.version == 3
        server.broadcast("moves", b"all")
        await until(lambda: seen[-1] == b"all")
    assert seen == [b"0", b"1", b"2", b"all"]
    assert heard == [("hello", b""), ("version", b"v")]
    await server.close()


async def test_asks_are_answered_each_its_own_and_slow_ones_hold_up_none(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(peer: Peer, body: bytes) -> bytes:
        await gate.wait()
        return b"slow " + body

    def quick(peer: Peer, body: bytes) -> bytes:
        return b"quick " + body

    server = LinkServer({"slow": slow, "quick": quick})
    await listen(server, tmp_path / "l")
    client = client_of(tmp_path / "l", [])
    async with running(client):
        await until(lambda: client.connected)
        waiting = asyncio.create_task(client.ask("slow", b"1"))
        assert await client.ask("quick", b"2") == b"quick 2"
        gate.set()
        assert await waiting == b"slow 1"
    await server.close()


async def test_plain_message_comes_through_behind_more_asks_than_are_answered_at_once(
    tmp_path: Path,
) -> None:
    said = asyncio.Event()
    at_once = most = 0

    async def waits_for_it(peer: Peer, body: bytes) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await said.wait()
        at_once -= 1
        return body

    server = LinkServer({"ask": waits_for_it, "say": lambda peer, body: said.set()})
    await listen(server, tmp_path / "l")
    client = client_of(tmp_path / "l", [])
    async with running(client):
        await until(lambda: client.connected)
        asks = [asyncio.create_task(client.ask("ask", b"%d" % n)) for n in range(3 * ASKS_MAX)]
        await until(lambda: at_once == ASKS_MAX)
        client.send("say", b"")

        assert await asyncio.gather(*asks) == [b"%d" % n for n in range(3 * ASKS_MAX)]
    assert most == ASKS_MAX
    await server.close()


async def test_asks_beyond_those_that_may_wait_are_told_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.link.server.ASKS_WAITING_MAX", 2)

    async def never(peer: Peer, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    server = LinkServer({"ask": never})
    await listen(server, tmp_path / "l")
    client = client_of(tmp_path / "l", [])
    async with running(client):
        await until(lambda: client.connected)
        asks = [asyncio.create_task(client.ask("ask", b"")) for _ in range(ASKS_MAX + 3)]
        with pytest.raises(LinkAway, match="could not answer"):
            await asks[-1]
        assert not any(ask.done() for ask in asks[:-1])
        await server.close()
        await asyncio.gather(*asks, return_exceptions=True)


async def test_an_ask_without_answer_is_link_away(tmp_path: Path) -> None:
    async def never(peer: Peer, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    def broken(peer: Peer, body: bytes) -> bytes:
        raise ValueError("no")

    server = LinkServer({"never": never, "broken": broken})
    await listen(server, tmp_path / "l")
    client = client_of(tmp_path / "l", [])
    with pytest.raises(LinkAway):
        await client.ask("never", b"")
    async with running(client):
        await until(lambda: client.connected)
        with pytest.raises(LinkAway, match="no answer to never"):
            await client.ask("never", b"", timeout_s=0.05)
        for kind in ("broken", "unheard-of"):
            with pytest.raises(LinkAway, match="could not answer"):
                await client.ask(kind, b"")
        parted = asyncio.create_task(client.ask("never", b""))
        await asyncio.sleep(0)
        await server.close()
        with pytest.raises(LinkAway, match="went away"):
            await parted


async def test_the_client_returns_when_control_does(tmp_path: Path) -> None:
    path = tmp_path / "l"
    hellos: list[Peer] = []
    parted: list[Peer] = []
    handlers = {"hello": lambda peer, body: hellos.append(peer)}
    client = client_of(path, [])
    async with running(client):
        client.send("version", b"dropped")
        for count in (1, 2):
            server = LinkServer(handlers)
            server.on_parted = parted.append
            await listen(server, path)
            await until(lambda: len(hellos) == count)  # noqa: B023 -- awaited in this turn
            await server.close()
            await until(lambda: not client.connected)
            assert len(parted) == count


async def test_nonsense_parts_the_peer_alone(tmp_path: Path) -> None:
    server = LinkServer({})
    await listen(server, tmp_path / "l")
    client = client_of(tmp_path / "l", [])
    async with running(client):
        await until(lambda: client.connected)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "l"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        assert client.connected
    await server.close()


def test_the_client_imports_nothing_of_the_admin_side() -> None:
    code = f"import sys, gateway.link.client as c; print([m for m in '{FORBIDDEN}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
