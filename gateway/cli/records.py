"""``records reverse|reprice``: what one request was charged, undone or charged anew."""

from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded


@click.group(help="Undo what a request was charged, or charge it anew.")
def records() -> None:
    """The group."""


@records.command(cls=SettingsCommand, help="Take back what request ID was charged.")
@click.argument("request_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def reverse(loaded: Loaded, *, request_id: str, as_json: bool) -> None:
    done = _ask(loaded, request_id, "reverse")
    _say(done, f"{done['entry']} takes back {done['reverses']}", as_json=as_json)


@records.command(
    cls=SettingsCommand, help="Charge request ID anew at VERSION of its model's price."
)
@click.argument("request_id", metavar="ID")
@click.argument("version", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def reprice(loaded: Loaded, *, request_id: str, version: int, as_json: bool) -> None:
    done = _ask(loaded, request_id, "reprice", {"price_version": version})
    _say(done, f"charged {done['charged']} in place of {done['reverses']}", as_json=as_json)


def _ask(loaded: Loaded, request_id: str, verb: str, body: Any = None) -> Any:
    path = f"/admin/v1/records/{request_id}/{verb}"
    return ask(loaded, lambda admin: admin.ask("POST", path, body))


def _say(done: Any, sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        click.echo(sentence)
