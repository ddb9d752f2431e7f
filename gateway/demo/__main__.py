"""``python -m gateway.demo``: the demo engine as a process of its own.

With ``--leash-fd`` it stops when the other end of that descriptor closes, so that it never outlives
who started it.
"""

import argparse
import asyncio
import json
import signal
import sys

from gateway.demo.engine import DemoEngine

#: A second or so at the usual pace.
ANSWER_TOKENS = 100


async def _serve(arguments: argparse.Namespace) -> None:
    engine = DemoEngine(
        arguments.host,
        arguments.port,
        model=arguments.model,
        token_ms=arguments.token_ms,
        answer_tokens=ANSWER_TOKENS,
    )
    await engine.start()
    sys.stdout.write(json.dumps({"event": "ready", "url": engine.url}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.leash_fd >= 0:
        # A byte or the end of file: either way the other side is done with us.
        loop.add_reader(arguments.leash_fd, stop.set)
    await stop.wait()
    await engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="An engine that answers as vLLM does.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="demo-model")
    parser.add_argument("--token-ms", type=float, default=8.0)
    parser.add_argument("--leash-fd", type=int, default=-1)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
