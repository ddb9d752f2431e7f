"""``publishers pay``: what a publisher was paid elsewhere, booked here."""

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded


@click.group(help="Book what publishers were paid.")
def publishers() -> None:
    """The group."""


@publishers.command(cls=SettingsCommand, help="Book that PUBLISHER was paid AMOUNT.")
@click.argument("publisher")
@click.argument("amount")
@click.option("--reference", required=True, help="The payment's name elsewhere; once a publisher.")
@click.option("--currency", metavar="USD", help="Default: USD.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def pay(
    loaded: Loaded,
    *,
    publisher: str,
    amount: str,
    reference: str,
    currency: str | None,
    as_json: bool,
) -> None:
    body = {"amount": amount, "reference": reference}
    if currency is not None:
        body["currency"] = currency
    path = f"/admin/v1/publishers/{publisher}/payouts"
    done = ask(loaded, lambda admin: admin.ask("POST", path, body))
    if as_json:
        print_json(done)
    else:
        click.echo(f"payable {done['payable']} after {done['amount']} paid")
