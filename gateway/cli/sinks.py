"""``sinks list|show|retry``: receivers of events, what they refused, and another try."""

import asyncio
from typing import Any

import click

from gateway.cli.client import open_admin
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = ("name", "kind", "format", "state", "delivered", "waiting", "parked", "failure")
PARKED = ("id", "parked_at", "queued", "reason")
NONE = "no sinks; declare some in a file: tokenfactory apply"


@click.group(help="Receivers of usage and alerts: list them, show what was parked, try again.")
def sinks() -> None:
    """The group."""


@sinks.command("list", cls=SettingsCommand, help="Every sink and webhook, and how far it has come.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def list_(loaded: Loaded, *, as_json: bool) -> None:
    rows = _ask(loaded, "GET", "/admin/v1/sinks")["data"]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, NONE)


@sinks.command(cls=SettingsCommand, help="One sink, and the events that it refused.")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, help="Parked events shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line, with the events whole.")
@click.pass_obj
def show(loaded: Loaded, *, name: str, limit: int, as_json: bool) -> None:
    found = _ask(loaded, "GET", f"/admin/v1/sinks/{name}?limit={limit}")
    if as_json:
        print_json(found)
        return
    for field in (*COLUMNS, "url", "next_try_at", "delivered_at"):
        click.echo(f"{field.replace('_', ' ')}: {'-' if found[field] is None else found[field]}")
    print_table(found["parked_events"], PARKED, "nothing is parked")


@sinks.command(
    cls=SettingsCommand,
    help="Try a sink again now, and send its parked events again: all, or those of the given ids.",
)
@click.argument("name")
@click.argument("event_ids", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def retry(loaded: Loaded, *, name: str, event_ids: tuple[str, ...], as_json: bool) -> None:
    body = {"events": list(event_ids) or None}
    said = _ask(loaded, "POST", f"/admin/v1/sinks/{name}/retry", body)
    if as_json:
        print_json(said)
    else:
        click.echo(f"{said['queued']} parked events are sent again")


def _ask(loaded: Loaded, method: str, path: str, body: Any = None) -> Any:
    async def ask() -> Any:
        async with open_admin(loaded) as admin:
            return await admin.ask(method, path, body)

    return asyncio.run(ask())
