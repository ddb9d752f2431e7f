"""``python -m gateway.demo``: a demo engine as a process of its own.

On a leash it tells its address there and ends when told to drain or when the other end closes;
without one it prints one JSON line and ends on SIGINT or SIGTERM.
"""

import argparse
import asyncio
import signal
import socket
import sys

import msgspec
import uvloop

from gateway.demo.engine import DemoEngine

#: Answers end by themselves after so many tokens: half a second to two.
ANSWER_TOKENS = (60, 240)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.demo", description="A demo engine.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--model", default="demo-model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--token-ms", type=float, default=8.0, help="time of one engine step")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--api-key", default=None, help="demand it on /v1")
    parser.add_argument("--leash-fd", type=int, default=None, help="a socket of its parent's")
    options = parser.parse_args()
    engine = DemoEngine(
        options.host,
        options.port,
        model=options.model,
        seed=options.seed,
        token_ms=options.token_ms,
        max_model_len=options.max_model_len,
        api_key=options.api_key,
        answer_tokens=ANSWER_TOKENS,
        log_max=0,
    )
    uvloop.run(_run(engine, options.leash_fd))


async def _run(engine: DemoEngine, leash_fd: int | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    await engine.start()
    if leash_fd is None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, stopping.set)
        line = msgspec.json.encode({"event": "ready", "url": engine.url}).decode()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        await stopping.wait()
    else:
        await _on_leash(leash_fd, engine.url)
    await engine.stop()


async def _on_leash(fd: int, url: str) -> None:
    """Tell the address; return on a drain line or at the end of file."""
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
    ready = {"event": "ready", "detail": url}
    writer.write(msgspec.json.encode(ready) + b"\n")
    while line := await reader.readline():
        if msgspec.json.decode(line).get("event") == "drain":
            break
    writer.close()


if __name__ == "__main__":
    main()
