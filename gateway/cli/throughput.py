"""``throughput ask|accept|end|show``: tokens a minute of one model, sold by the hour."""

import asyncio
from typing import Any

import click

from gateway.cli.client import open_admin
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = (
    "id",
    "model",
    "tokens_per_minute",
    "price_per_hour",
    "overflow",
    "state",
    "used_percent",
    "idle_tokens",
    "charge",
    "currency",
)


@click.group(help="Reserve tokens a minute for a tenant, sell them, see what stands idle.")
def throughput() -> None:
    """The group."""


@throughput.command(cls=SettingsCommand, help="Ask for a term of TENANT's; nothing is sold yet.")
@click.argument("tenant")
@click.argument("model")
@click.option("--tokens-per-minute", type=int, required=True, help="What is guaranteed.")
@click.option("--price-per-hour", required=True, help="Used or not, such as 1.50.")
@click.option("--until", metavar="DATE", required=True, help="Its last day (UTC).")
@click.option("--currency", metavar="USD", default="USD", show_default=True)
@click.option(
    "--overflow",
    type=click.Choice(["spill", "reject"]),
    default="spill",
    show_default=True,
    help="Above it: sold as to everybody, or answered 429.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def ask(loaded: Loaded, /, *, tenant: str, as_json: bool, **asked: Any) -> None:
    _say(_ask(loaded, "POST", f"/admin/v1/tenants/{tenant}/throughput", asked), as_json=as_json)


@throughput.command(cls=SettingsCommand, help="Sell term ID: guaranteed and billed from now on.")
@click.argument("term", metavar="ID", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def accept(loaded: Loaded, *, term: int, as_json: bool) -> None:
    _say(_ask(loaded, "POST", f"/admin/v1/throughput/{term}/accept", {}), as_json=as_json)


@throughput.command(cls=SettingsCommand, help="End term ID now; hours up to now stay billed.")
@click.argument("term", metavar="ID", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def end(loaded: Loaded, *, term: int, as_json: bool) -> None:
    _say(_ask(loaded, "POST", f"/admin/v1/throughput/{term}/end", {}), as_json=as_json)


@throughput.command(cls=SettingsCommand, help="TENANT's terms: how much was used, and stood idle.")
@click.argument("tenant")
@click.option("--month", metavar="MONTH", help="Such as 2026-11; default: this one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(loaded: Loaded, *, tenant: str, month: str | None, as_json: bool) -> None:
    params = {"month": month} if month else None
    path = f"/admin/v1/tenants/{tenant}/throughput"
    found = _ask(loaded, "GET", path, None, params)["data"]
    if as_json:
        print_json(found)
    else:
        print_table(found, COLUMNS, "no reserved throughput")


def _ask(
    loaded: Loaded, method: str, path: str, body: Any = None, params: dict[str, str] | None = None
) -> Any:
    async def question() -> Any:
        async with open_admin(loaded) as admin:
            return await admin.ask(method, path, body, params)

    return asyncio.run(question())


def _say(term: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(term)
        return
    click.echo(
        f"term {term['id']}: {term['tokens_per_minute']} tokens a minute of {term['model']} at "
        f"{term['price_per_hour']} {term['currency']} an hour, {term['state']}"
    )
