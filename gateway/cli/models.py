"""``models list|add``: what callers may name; adding one asks its engine what it can do."""

from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = ("name", "upstream", "pool", "context_tokens", "max_output_tokens", "price")


@click.group(help="List models; add one, with what its engine can do.")
def models() -> None:
    """The group."""


@models.command("list", cls=SettingsCommand, help="Every model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def list_models(loaded: Loaded, *, as_json: bool) -> None:
    rows = ask(loaded, lambda admin: admin.models())
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            row["price"] = _price(row["price"])
        print_table(rows, COLUMNS, "no models; add one: tokenfactory models add NAME URL")


@models.command(
    cls=SettingsCommand,
    help="Add a model served at URL and print what was found there: models, usage in streams, "
    "metrics, tokenize.",
)
@click.argument("name")
@click.argument("url")
@click.option("--upstream", help="The engine's name of it; default: NAME.")
@click.option("--pool", help="The pool it joins; default: one named after it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def add(
    loaded: Loaded, *, name: str, url: str, upstream: str | None, pool: str | None, as_json: bool
) -> None:
    body = {"name": name, "url": url, "upstream": upstream, "pool": pool}

    made = ask(
        loaded, lambda admin: admin.add_model({n: value for n, value in body.items() if value})
    )
    if as_json:
        print_json(made)
        return
    click.echo(f"added {name}")
    for what, found in (made.get("found") or {}).items():
        click.echo(f"  {what.replace('_', ' ')}: {found}")


def _price(price: dict[str, Any] | None) -> str:
    """A price in a table's cell: per million tokens, meter by meter."""
    if price is None:
        return "-"
    meters = " ".join(
        f"{meter} {amount}"
        for meter, amount in sorted(price.items())
        if meter not in ("version", "currency")
    )
    return f"{price['currency']} {meters}"
