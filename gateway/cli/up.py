"""``serve`` and ``up``: become the supervisor of this host, say when it is ready, serve.

``up`` is ``serve`` with something to serve: a demo engine of its own, or the engine it is given, and
a key made for this start. Not here: how processes are kept (``gateway.supervisor``).
"""

import asyncio
import contextlib
import shlex
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from gateway.cli.output import EXIT_FAILED, EXIT_USAGE, CommandFailed, print_json
from gateway.cli.settings_options import SettingsCommand
from gateway.datafolder import DataFolder, FolderError, write_private
from gateway.embedded import StoreRefused
from gateway.settings import Loaded
from gateway.sockets import PortTaken
from gateway.supervisor import StartFailed, Supervisor
from gateway.telemetry.access import configure_logging

DEMO_MODEL = "demo-model"
DEMO_PORT_FILE = "demo_port"


@click.command(cls=SettingsCommand, show_settings=True, help="Serve.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready.")
@click.pass_obj
def serve(loaded: Loaded, *, as_json: bool) -> int:
    async def announce(host: Supervisor) -> None:
        _say(_ready(host), as_json=as_json)

    return _host(loaded, [], announce)


@click.command(cls=SettingsCommand, show_settings=True, help="Serve a demo model, or one engine.")
@click.option("--engine", metavar="URL", help="Front this engine instead of the demo's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready.")
@click.pass_obj
def up(loaded: Loaded, *, engine: str | None, as_json: bool) -> int:
    async def announce(host: Supervisor) -> None:
        # Imported here: an HTTP client (0.1 s), while the children start anyway.
        from gateway.cli.demo import make_demo  # noqa: PLC0415

        url = engine or host.guests[0].ready_detail
        access = await make_demo(host.run_file, url, None if engine else DEMO_MODEL)
        await host.wait_for_version(access.version)
        if engine is None:
            write_private(host.folder.path / DEMO_PORT_FILE, str(urlsplit(url).port).encode())
        _say(_ready(host) | {"api_key": access.api_key, "model": access.model}, as_json=as_json)
        if not as_json:
            _say_try(host.run_file.base_url, access.api_key, access.model)

    return _host(loaded, [] if engine else [_demo_engine(loaded)], announce)


def _demo_engine(loaded: Loaded) -> tuple[str, list[str]]:
    """A guest of the supervisor, on the port of its last start where that is free."""
    port = "0"
    with contextlib.suppress(OSError, ValueError):
        kept = (DataFolder(loaded.settings.data_dir).path / DEMO_PORT_FILE).read_text()
        with socket.create_server(("127.0.0.1", int(kept))):
            port = kept
    arguments = ["--port", port, "--model", DEMO_MODEL, "--leash-fd", "{leash}"]
    return "demo engine", ["gateway.demo", *arguments]


def _host(
    loaded: Loaded,
    guests: list[tuple[str, list[str]]],
    announce: Callable[[Supervisor], Awaitable[None]],
) -> int:
    configure_logging(loaded.settings.log_level)
    try:
        return asyncio.run(_run(loaded, guests, announce))
    except StoreRefused as error:
        raise CommandFailed(str(error), EXIT_USAGE) from None
    except (FolderError, PortTaken, StartFailed) as error:
        raise CommandFailed(str(error), EXIT_FAILED) from None


async def _run(
    loaded: Loaded,
    guests: list[tuple[str, list[str]]],
    announce: Callable[[Supervisor], Awaitable[None]],
) -> int:
    host = Supervisor(loaded.settings, guests)
    return await host.run(lambda: announce(host))


def _ready(host: Supervisor) -> dict[str, Any]:
    run = msgspec.structs.asdict(host.run_file)
    return {
        "event": "ready",
        **{n: run[n] for n in ("base_url", "control_url", "operator_token", "store", "pid")},
    }


def _say(ready: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(ready)
        return
    click.echo(f"Token Factory is ready ({ready['store']}, process {ready['pid']})")
    click.echo(f"  API       {ready['base_url']}")
    click.echo(
        f"  control   {ready['control_url']}   (operator token: run.json in the data folder)"
    )


def _say_try(base_url: str, api_key: str, model: str) -> None:
    body = msgspec.json.encode(
        {
            "model": model,
            "stream": True,
            "max_tokens": 64,
            "messages": [{"role": "user", "content": "Say hello"}],
        }
    ).decode()
    parts = [
        "curl",
        "-N",
        f"{base_url}/chat/completions",
        "-H",
        f"authorization: Bearer {api_key}",
        "-H",
        "content-type: application/json",
        "-d",
        body,
    ]
    click.echo(f"  model     {model}")
    click.echo(f"  key       {api_key}   (shown this once)")
    click.echo("\nTry it:\n\n  " + shlex.join(parts))
    click.echo(f"\nthen: {_program()} usage\n")


def _program() -> str:
    """How to call this command again from the same shell."""
    found = shutil.which("tokenfactory")
    called = Path(sys.argv[0])
    if found is not None and Path(found).resolve() == called.resolve():
        return "tokenfactory"
    try:
        return str(called.relative_to(Path.cwd()))
    except ValueError:
        return str(called)
