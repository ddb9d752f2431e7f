"""``margin``: what a month's sales leave the operator, by model."""

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = (
    "model",
    "currency",
    "sold",
    "promotional",
    "publishers",
    "net",
    "token_cost",
    "hour_cost",
    "margin",
)


@click.command(cls=SettingsCommand, help="Sales, publishers' parts and engines' costs, by model.")
@click.option("--month", metavar="MONTH", help="Such as 2026-11; default: this one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def margin(loaded: Loaded, *, month: str | None, as_json: bool) -> None:
    params = {"month": month} if month else {}
    found = ask(loaded, lambda admin: admin.ask("GET", "/admin/v1/margin", params=params))
    if as_json:
        print_json(found)
    else:
        print_table(found["data"], COLUMNS, f"nothing was sold in {found['month']}")
