"""``apply FILE``: bring pools, models, tenants, projects and keys to what a file says."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from gateway.cli.client import open_admin
from gateway.cli.output import EXIT_USAGE, CommandFailed, print_json
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded


@click.command(
    cls=SettingsCommand,
    help="Bring accounts, models and pools to what FILE says (YAML or JSON; - reads standard "
    "input). Nothing is removed without --prune.",
)
@click.argument("file")
@click.option("--prune", is_flag=True, help="Remove what FILE does not name; lists it and asks.")
@click.option("--yes", is_flag=True, help="Answer yes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line, with new keys' secrets.")
@click.pass_obj
def apply(loaded: Loaded, *, file: str, prune: bool, yes: bool, as_json: bool) -> None:
    document = _read(file)
    result = asyncio.run(_apply(loaded, document, file, prune=prune, yes=yes))
    if as_json:
        print_json({name: result[name] for name in ("version", "created", "keys")})
    else:
        _say(result)


async def _apply(
    loaded: Loaded, document: Any, file: str, *, prune: bool, yes: bool
) -> dict[str, Any]:
    async with open_admin(loaded) as admin:
        if prune and not yes:
            plan = await admin.apply(document, file, prune=True, dry_run=True)
            if _count(plan.get("removed")):
                # In a thread: the loop keeps the connection alive while a person thinks.
                await asyncio.to_thread(_confirm, plan["removed"])
        result: dict[str, Any] = await admin.apply(document, file, prune=prune)
        return result


def _confirm(removed: dict[str, list[str]]) -> None:
    click.echo("This removes:", err=True)
    for noun, names in removed.items():
        for name in names:
            click.echo(f"  {noun.rstrip('s')} {name}", err=True)
    if not sys.stdin.isatty():
        raise CommandFailed("nothing was changed; add --yes to remove these", EXIT_USAGE)
    if not click.confirm("Go on?", err=True):
        raise CommandFailed("nothing was changed")


def _read(file: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CommandFailed(f"cannot read {file}: {reason}", EXIT_USAGE) from None
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 -- both are safe loaders
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise CommandFailed(f"{file}{line}: not YAML ({problem})") from None


def _say(result: dict[str, Any]) -> None:
    for verb in ("created", "updated", "removed"):
        for noun, names in (result.get(verb) or {}).items():
            if names:
                click.echo(f"{verb} {noun}: {', '.join(names)}")
    for key in result["keys"]:
        click.echo(f"key {key['path']}: {key['secret']}   (shown this once)")
    click.echo(f"version {result['version']}")


def _count(removed: Any) -> int:
    return sum(len(names) for names in (removed or {}).values())
