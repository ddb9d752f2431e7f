"""A supervisor of small children as a process of its own: ``python -m tests.support.small_host``.

``CHILD_CONTROL`` names another module for the control process.
"""

import asyncio
import os
import sys

import msgspec

from gateway.datafolder import FolderError
from gateway.embedded import StoreRefused
from gateway.settings import load
from gateway.sockets import PortTaken
from gateway.supervisor import StartFailed, Supervisor


async def _main() -> int:
    module = "tests.support.small_child"
    control = os.environ.get("CHILD_CONTROL", module)
    supervisor = Supervisor(load(os.environ, {}).settings, modules=(control, module))

    async def announce() -> None:
        await supervisor.wait_for_version(7)
        print(msgspec.json.encode(supervisor.run_file).decode(), flush=True)

    return await supervisor.run(announce)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(_main()))
    except (FolderError, StoreRefused, PortTaken, StartFailed) as error:
        sys.exit(str(error))
