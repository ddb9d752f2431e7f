"""``keys create|list|revoke|rotate``: keys by their path, tenant/project/key."""

from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = ("path", "kid", "state", "models", "expires", "created")


@click.group(help="Create, list, revoke and rotate keys.")
def keys() -> None:
    """The group."""


@keys.command(cls=SettingsCommand, help="Make a key, tenant/project/key; prints its secret once.")
@click.argument("path")
@click.option("--models", metavar="A,B", help="Models it may call; default: all.")
@click.option("--expires", metavar="DATE", help="Last day it works, e.g. 2027-06-30.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def create(
    loaded: Loaded, *, path: str, models: str | None, expires: str | None, as_json: bool
) -> None:
    names = None if models is None else [each.strip() for each in models.split(",")]

    _say_secret(ask(loaded, lambda admin: admin.create_key(path, names, expires)), as_json=as_json)


@keys.command("list", cls=SettingsCommand, help="Every key, without secrets.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def list_keys(loaded: Loaded, *, as_json: bool) -> None:
    rows = ask(loaded, lambda admin: admin.keys())
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, "no keys; make one: tokenfactory keys create acme/chatbot/ci")


@keys.command(cls=SettingsCommand, help="End a key now; its running streams end within 5 s.")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def revoke(loaded: Loaded, *, path: str, as_json: bool) -> None:
    done = ask(loaded, lambda admin: admin.revoke_key(path))
    if as_json:
        print_json(done)
    else:
        click.echo(f"revoked {path}")


@keys.command(cls=SettingsCommand, help="Give a key a new secret, printed once.")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def rotate(loaded: Loaded, *, path: str, as_json: bool) -> None:
    _say_secret(ask(loaded, lambda admin: admin.rotate_key(path)), as_json=as_json)


def _say_secret(made: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        click.echo(made["secret"])
        click.echo(f"the secret of {made['path']}; it is shown this once", err=True)
