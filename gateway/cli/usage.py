"""``usage``: tokens and requests per key, model or day; or every record, one a line."""

import asyncio

import click

from gateway.cli.client import open_admin
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "currency")
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


@click.command(cls=SettingsCommand, help="Tokens and requests per key, model or day.")
@click.option("--records", "show_records", is_flag=True, help="Every record, oldest first.")
@click.option("--by", type=click.Choice(["key", "model", "day"]), default="key", show_default=True)
@click.option("--since", metavar="DATE", help="From this day or time on (UTC).")
@click.option("--json", "as_json", is_flag=True, help="One JSON line; with --records one a record.")
@click.pass_obj
def usage(loaded: Loaded, *, show_records: bool, by: str, since: str | None, as_json: bool) -> None:
    if show_records:
        asyncio.run(_records(loaded, since, as_json=as_json))
    else:
        asyncio.run(_sums(loaded, by, since, as_json=as_json))


async def _records(loaded: Loaded, since: str | None, *, as_json: bool) -> None:
    async with open_admin(loaded) as admin:
        records = admin.records(since)
        if as_json:
            async for record in records:
                print_json(record)
        else:
            print_table([each async for each in records], RECORD, "no records")


async def _sums(loaded: Loaded, by: str, since: str | None, *, as_json: bool) -> None:
    async with open_admin(loaded) as admin:
        rows = await admin.usage(by, since)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, (by, *SUMS), "no usage yet")
