"""``explain KEY MODEL``: what a request would get now, and which limit says so."""

from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

LIMITS = ("scope", "name", "limit", "used", "held", "remaining", "reset", "requested", "notes")
REFUSALS = ("at", "scope", "name", "requested", "used", "limit", "reason")
REFUSALS_SHOWN = 10


@click.command(
    cls=SettingsCommand,
    help="What a request of KEY (tenant/project/key) to MODEL would get now: every limit that "
    "applies with its level, the verdict, and the last refusals.",
)
@click.argument("key")
@click.argument("model")
@click.option("--tokens", type=int, help="Tokens of the request, its answer included.  [1000]")
@click.option("--max-tokens", type=int, help="How many of them its answer may have.  [half]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def explain(
    loaded: Loaded,
    *,
    key: str,
    model: str,
    tokens: int | None,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    sizes = {"tokens": tokens, "max_tokens": max_tokens}

    given = {name: size for name, size in sizes.items() if size is not None}
    found = ask(loaded, lambda admin: admin.explain(key, model, given))
    if as_json:
        print_json(found)
        return
    _say(found)


def _say(found: dict[str, Any]) -> None:
    request, verdict = found["request"], found["verdict"]
    size = f"{request['input_tokens']} + {request['output_tokens']} tokens"
    if verdict["admitted"]:
        click.echo(f"a request of {size} would be admitted")
    else:
        wait_ms = verdict["retry_after_ms"]
        when = "not by waiting" if wait_ms is None else f"fits in {wait_ms / 1000:.3f} s"
        click.echo(f"a request of {size} would be refused by {verdict['binding']}: {when}")
    sold = found["throughput"]
    if sold is not None:
        fits = "fits in" if sold["verdict"]["admitted"] else "has no room in"
        click.echo(f"it {fits} the tenant's reserved throughput (overflow: {sold['overflow']})")
    limits = [*(sold["limits"] if sold else ()), *found["limits"]]
    print_table(map(_limit, limits), LIMITS, "no limits apply")
    for credit in found["offline_credit"]:
        click.echo(f"while the store is away: {credit['limit']} of {credit['scope']}'s money")
    if found["refusals"]:
        click.echo("\nlast refusals")
        print_table(map(_refusal, found["refusals"][:REFUSALS_SHOWN]), REFUSALS, "")


def _limit(limit: dict[str, Any]) -> dict[str, Any]:
    notes = [] if limit["enforced"] else ["shadow"]
    notes += [
        f"leased {each['unspent']} at {each['process']}"
        for each in limit.get("leases", ())
        if each["unspent"]
    ]
    notes += [f"{each['holds']} at {each['process']}" for each in limit["holders"]]
    return {**limit, "reset": f"{limit['reset_ms'] / 1000:.1f} s", "notes": notes}


def _refusal(refusal: dict[str, Any]) -> dict[str, Any]:
    at = _clock(refusal["at_ms"])
    return {**refusal, "at": at, "name": f"{refusal['dimension']} ({refusal['window']})"}


def _clock(at_ms: int) -> str:
    """A time of day in UTC."""
    seconds = at_ms // 1000 % 86_400
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}Z"
