"""``export``: records, postings or FOCUS rows into a file, page by page, to be gone on with later."""

import asyncio
import sys
from pathlib import Path
from typing import BinaryIO

import click

from gateway.cli.client import open_admin
from gateway.cli.output import CommandFailed
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

PAGE = 5_000


@click.command(
    cls=SettingsCommand,
    help="Records, postings or FOCUS 1.2 rows, as CSV or JSON lines; the cursor goes to stderr.",
)
@click.argument("data", type=click.Choice(["records", "postings", "focus"]), default="records")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv")
@click.option("--tenant", metavar="NAME", help="Of this tenant alone.")
@click.option("--month", metavar="MONTH", help="Booked in this month alone (2026-11).")
@click.option("--cursor", metavar="CURSOR", help="Only what comes after it, without a header line.")
@click.option(
    "--out", metavar="FILE", type=click.Path(dir_okay=False),
    help="Default: print it. With --cursor, lines are added to the file.",
)  # fmt: skip
@click.pass_obj
def export(
    loaded: Loaded,
    *,
    data: str,
    form: str,
    tenant: str | None,
    month: str | None,
    cursor: str | None,
    out: str | None,
) -> None:
    given = {"data": data, "format": form, "tenant": tenant, "month": month, "cursor": cursor}
    asked = {name: value for name, value in given.items() if value}
    try:
        if out is None:
            asyncio.run(_export(loaded, asked, sys.stdout.buffer))
        else:
            with Path(out).open("ab" if cursor else "wb") as file:
                asyncio.run(_export(loaded, asked, file))
    except OSError as error:
        raise CommandFailed(f"{out or 'standard output'}: {error.strerror}") from None


async def _export(loaded: Loaded, asked: dict[str, str], file: BinaryIO) -> None:
    async with open_admin(loaded) as admin:
        more = True
        while more:
            text, headers = await admin.raw("/admin/v1/export", asked | {"limit": str(PAGE)})
            file.write(text)
            asked["cursor"], more = headers["x-tf-cursor"], headers["x-tf-more"] == "1"
    file.flush()
    click.echo(f"go on with --cursor {asked['cursor']}", err=True)
