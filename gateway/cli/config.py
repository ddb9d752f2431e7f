"""``config show``, ``config reference`` and ``version``: what this program is set to, and is."""

import click

from gateway import __version__
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded, describe, reference, shown


@click.group(help="Settings and where each comes from.")
def config() -> None:
    """The group."""


@config.command(cls=SettingsCommand, help="Each setting, its value and its origin; no secrets.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(loaded: Loaded, *, as_json: bool) -> None:
    values = shown(loaded.settings)
    rows = [
        {"setting": row.path, "value": values[row.path], "origin": loaded.origins[row.path]}
        for row in describe()
    ]
    if as_json:
        print_json({row.pop("setting"): row for row in rows})
    else:
        print_table(rows, ("setting", "value", "origin"), "no settings")


@config.command("reference", help="The page docs/settings.md.")
def reference_command() -> None:
    click.echo(reference(), nl=False)


@click.command(cls=SettingsCommand, help="The version of this program.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def version(*, as_json: bool) -> None:
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(f"tokenfactory {__version__}")
