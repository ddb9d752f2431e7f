"""``reconcile``: engines' own token counters against the records, from the last time to now.

Exit status 1 when an engine counted tokens that no record explains, or the other way round. Not here:
how it is judged (``gateway.metering.reconcile``).
"""

import asyncio
from typing import Any

import click

from gateway.cli.client import open_admin
from gateway.cli.output import EXIT_FAILED, print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = (
    "endpoint",
    "from",
    "to",
    "at_rest",
    "attempts",
    "probes",
    "kind",
    "engine",
    "records",
    "difference",
)
OPEN = ("endpoint", "request_id", "reason", "prompt", "generation")
NOTHING = "nothing to compare yet: the counters of now are where the next reconciliation begins"


@click.command(
    cls=SettingsCommand, help="Compare engines' own token counters with the usage records."
)
@click.option("--requests", "show_requests", is_flag=True, help="Requests that leave room, too.")
@click.option("--history", type=click.IntRange(1, 1_000), metavar="N", help="The last N instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def reconcile(loaded: Loaded, *, show_requests: bool, history: int | None, as_json: bool) -> int:
    reports = asyncio.run(_ask(loaded, history))
    if as_json:
        print_json(reports)
    else:
        print_table([line for each in reports for line in _lines(each)], COLUMNS, NOTHING)
        if show_requests:
            click.echo()
            print_table(
                _open(reports), OPEN, "every token is explained by an answer that came whole"
            )
    wrong = any(each["difference_prompt"] or each["difference_generation"] for each in reports)
    return EXIT_FAILED if wrong and history is None else 0


async def _ask(loaded: Loaded, history: int | None) -> list[dict[str, Any]]:
    async with open_admin(loaded) as admin:
        found: list[dict[str, Any]] = (
            await admin.reconcile() if history is None else await admin.reconciliations(history)
        )
        return found


def _lines(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompt and generation, one under the other."""
    shared = {name: report[name] for name in ("endpoint", "from", "to", "attempts", "probes")}
    shared["at_rest"] = "yes" if report["exact"] else "no"
    lines = []
    for kind in ("prompt", "generation"):
        line = shared if kind == "prompt" else dict.fromkeys(shared, "")
        lines.append(
            {
                **line,
                "kind": kind,
                "engine": report[f"engine_{kind}"],
                "records": _range(report[kind]),
                "difference": report[f"difference_{kind}"],
            }
        )
    return lines


def _open(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "endpoint": report["endpoint"],
            "request_id": each["request_id"] or "(a probe)",
            "reason": each["reason"],
            "prompt": _range(each["prompt"]),
            "generation": _range(each["generation"]),
        }
        for report in reports
        for each in report["explained_by"]
    ]


def _range(tokens: dict[str, int]) -> str:
    low, high = tokens["low"], tokens["high"]
    return str(low) if low == high else f"{low}-{high}"
