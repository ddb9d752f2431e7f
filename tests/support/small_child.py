"""The smallest child a supervisor can keep: ready at once, answers its pid, obeys its leash.

``CHILD_DRAIN_S`` delays its end after a drain; ``CHILD_FAILS`` names the role that ends at start.
"""

import asyncio
import os
import socket
import sys

from gateway.leash import Event, Leash


async def _main() -> None:
    leash = Leash(int(sys.argv[1]))
    launch = await leash.open()
    if os.environ.get("CHILD_FAILS") == launch.role:
        sys.exit(3)
    over = asyncio.Event()
    draining = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"%s %d\n" % (launch.role.encode(), os.getpid()))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, sock=socket.socket(fileno=launch.listen_fd))
    watch = asyncio.create_task(leash.watch(draining.set, over.set))
    leash.tell(Event(event="ready", detail="7"))
    waits = [asyncio.create_task(each.wait()) for each in (over, draining)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if draining.is_set():
        await asyncio.sleep(float(os.environ.get("CHILD_DRAIN_S", "0")))
    watch.cancel()
    print(f"{launch.role} {launch.slot} stops", file=sys.stderr)


asyncio.run(_main())
