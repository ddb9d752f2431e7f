"""``contracts show``: what a tenant agreed to, version by version."""

from datetime import UTC, datetime

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = ("version", "kind", "currency", "credit_line", "commitment", "overage", "from")


@click.group(help="Show contracts; a file makes them (apply).")
def contracts() -> None:
    """The group."""


@contracts.command(cls=SettingsCommand, help="Every version of TENANT's contract.")
@click.argument("tenant")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(loaded: Loaded, *, tenant: str, as_json: bool) -> None:
    found = ask(loaded, lambda admin: admin.ask("GET", f"/admin/v1/tenants/{tenant}/contract"))
    if as_json:
        print_json(found)
        return
    rows = [
        each | {"from": datetime.fromtimestamp(each["from_ms"] // 1000, UTC).isoformat()}
        for each in found["contracts"]
    ]
    print_table(rows, COLUMNS, "no contract: what is used is free")
