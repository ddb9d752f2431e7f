"""``limits show|set|remove``: limits of tenants, projects, keys and what all share, by path."""

from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import EXIT_USAGE, CommandFailed, print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = ("path", "limit", "value", "of", "notes", "version")


@click.group(
    help="Show and change limits of tenants, projects and keys, and of what all of them share: "
    "@platform, @pool/NAME, @model/NAME."
)
def limits() -> None:
    """The group."""


@limits.command(cls=SettingsCommand, help="Every limit; with PATH, its own and those below it.")
@click.argument("path", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(loaded: Loaded, *, path: str, as_json: bool) -> None:
    rows = ask(loaded, lambda admin: admin.limits(path))
    if as_json:
        print_json(rows)
    else:
        print_table(map(_row, rows), COLUMNS, "no limits")


@limits.command(
    "set",
    cls=SettingsCommand,
    help="Set limits of PATH: NAME=VALUE, e.g. tokens_per_minute=60000 budget_per_month=25.00. "
    "Each becomes what is said here; the others stay. In force within a second, and nothing that "
    "was used is forgotten.",
)
@click.argument("path")
@click.argument("values", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--model", metavar="NAME", help="For this model alone.")
@click.option("--end-user", is_flag=True, help="Of each end user that requests name.")
@click.option("--burst", type=int, help="Units a full bucket holds; default: one minute's.")
@click.option("--shadow", is_flag=True, help="Count what it would refuse, and refuse nothing.")
@click.option(
    "--outage",
    type=click.Choice(["fail_closed", "local_share"]),
    help="While the store is away: refuse, or admit each process's share.",
)
@click.option("--cached-input-weight", type=float, help="What a cached input token counts, 0 to 1.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def set_limits(
    loaded: Loaded,
    *,
    path: str,
    values: tuple[str, ...],
    model: str | None,
    end_user: bool,
    burst: int | None,
    shadow: bool,
    outage: str | None,
    cached_input_weight: float | None,
    as_json: bool,
) -> None:
    said = {
        "burst": burst,
        "shadow": shadow or None,
        "outage": outage,
        "cached_input_weight": cached_input_weight,
    }
    more = {name: value for name, value in said.items() if value is not None}
    body = {
        "path": path,
        "model": model,
        "end_user": end_user,
        "limits": {
            name: {"limit": _value(name, text), **more} for name, text in map(_pair, values)
        },
    }
    _change(loaded, body, as_json=as_json)


@limits.command(cls=SettingsCommand, help="End limits of PATH by their names.")
@click.argument("path")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--model", metavar="NAME", help="Those for this model alone.")
@click.option("--end-user", is_flag=True, help="Those of each end user.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def remove(
    loaded: Loaded,
    *,
    path: str,
    names: tuple[str, ...],
    model: str | None,
    end_user: bool,
    as_json: bool,
) -> None:
    body = {"path": path, "model": model, "end_user": end_user, "remove": list(names)}
    _change(loaded, body, as_json=as_json)


def _change(loaded: Loaded, body: dict[str, Any], *, as_json: bool) -> None:
    done = ask(loaded, lambda admin: admin.change_limits(body))
    if as_json:
        print_json(done)
    else:
        click.echo(f"{'changed' if done['changed'] else 'nothing to change at'} {done['path']}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"{text!r}: expected NAME=VALUE", EXIT_USAGE)
    return name, value


def _value(name: str, text: str) -> object:
    """Budgets are exact decimals and travel as text."""
    if name.startswith("budget") or name == "offline_credit":
        return text
    if not text.isdigit():
        raise CommandFailed(f"{name}={text}: expected a whole number", EXIT_USAGE)
    return int(text)


def _row(limit: dict[str, Any]) -> dict[str, Any]:
    notes = [f"burst {limit['burst']}"] if "burst" in limit else []
    if "cached_input_weight" in limit:
        notes.append(f"cached input x {limit['cached_input_weight']:g}")
    if limit.get("shadow"):
        notes.append("shadow")
    if "outage" in limit:
        notes.append(limit["outage"])
    of = f"model {limit['model']}" if limit["model"] else None
    return {
        "path": limit["path"],
        "limit": limit["name"],
        "value": limit["limit"],
        "of": "each end user" if limit["end_user"] else of,
        "notes": notes,
        "version": limit["version"],
    }
