"""``usage``: tokens, requests and cost by key, model, day and more; or every record, one a line."""

import asyncio
import json
from typing import Any

import click

from gateway.cli.client import WHOLE_LEDGER_S, Admin, open_admin
from gateway.cli.output import CommandFailed, print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

BY = ("day", "hour", "tenant", "project", "key", "model")
SUMS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost",
    "charged",
    "currency",
)
RECORD = (
    "started_at",
    "request_id",
    "key",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "source",
    "outcome",
    "status",
    "ttft_ms",
    "total_ms",
)


@click.command(cls=SettingsCommand, help="Tokens, requests and cost, summed by what is asked.")
@click.option("--records", "show_records", is_flag=True, help="Every record, oldest first.")
@click.option(
    "--by",
    type=click.Choice(BY),
    multiple=True,
    default=("key",),
    show_default=True,
    help="May be given several times.",
)
@click.option("--since", metavar="DATE", help="From this day or time on (UTC), by the hour.")
@click.option("--until", metavar="DATE", help="Before this day or time (UTC), by the hour.")
@click.option("--tenant", metavar="NAME", help="Of this tenant alone.")
@click.option("--project", metavar="TENANT/PROJECT", help="Of this project alone.")
@click.option("--key", metavar="PATH", help="Of this key alone.")
@click.option("--model", metavar="NAME", help="Of this model alone.")
@click.option(
    "--check", is_flag=True, help="Compare the sums with the ledger; fails if they differ."
)
@click.option("--rebuild", is_flag=True, help="Make every sum anew from the ledger.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line; with --records one a record.")
@click.pass_obj
def usage(
    loaded: Loaded,
    /,
    *,
    show_records: bool,
    by: tuple[str, ...],
    since: str | None,
    check: bool,
    rebuild: bool,
    as_json: bool,
    **filters: str | None,
) -> None:
    if check or rebuild:
        asyncio.run(_sums_kept(loaded, rebuild=rebuild, as_json=as_json))
        return
    if show_records:
        asyncio.run(_records(loaded, since, as_json=as_json))
        return
    given = {"by": ",".join(by), "from": since, "to": filters.pop("until"), **filters}
    asked = {name: value for name, value in given.items() if value}
    asyncio.run(_sums(loaded, by, asked, as_json=as_json))


async def _records(loaded: Loaded, since: str | None, *, as_json: bool) -> None:
    async with open_admin(loaded) as admin:
        records = admin.records(since)
        if as_json:
            async for record in records:
                print_json(record)
        else:
            print_table([each async for each in records], RECORD, "no records")


async def _sums(
    loaded: Loaded, by: tuple[str, ...], asked: dict[str, str], *, as_json: bool
) -> None:
    async with open_admin(loaded) as admin:
        rows = await admin.usage(asked)
    if as_json:
        print_json(rows)
    else:
        columns = [each for each in BY if each in by]
        print_table(rows, (*columns, *SUMS), "no usage yet")


async def _whole(admin: Admin, method: str, what: str) -> Any:
    return await admin.ask(method, f"/admin/v1/usage/{what}", within_s=WHOLE_LEDGER_S)


async def _sums_kept(loaded: Loaded, *, rebuild: bool, as_json: bool) -> None:
    async with open_admin(loaded) as admin:
        if rebuild:
            made = (await _whole(admin, "POST", "rebuild"))["rows"]
            if not as_json:
                click.echo(f"made {made} sums anew")
        found = (await _whole(admin, "GET", "differences"))["data"]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("the sums are the ledger's")
    for each in () if as_json else found:
        click.echo(json.dumps(each))
    if found:
        raise CommandFailed("the sums differ from the ledger; tokenfactory usage --rebuild")
