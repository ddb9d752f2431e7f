"""``doctor``: look for what will go wrong, and say what to change.

The control side measures and judges (``gateway.control.diagnosis``); this prints, and adds what
only the caller's environment shows. Exit status 1 when something is wrong.
"""

import asyncio
from typing import Any

import click

from gateway.cli.client import open_admin
from gateway.cli.output import EXIT_FAILED, print_json
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

_MARKS = {"ok": "ok  ", "warning": "WARN", "error": "FAIL"}


@click.command(cls=SettingsCommand, help="Look for what will go wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line: a list of findings.")
@click.pass_obj
def doctor(loaded: Loaded, *, as_json: bool) -> int:
    findings = [*asyncio.run(_ask(loaded)), *_environment(loaded)]
    if as_json:
        print_json(findings)
    else:
        for each in findings:
            mark = _MARKS.get(each["severity"], each["severity"])
            click.echo(f"{mark}  {each['check']}: {each['subject']}: {each['message']}")
    return EXIT_FAILED if any(each["severity"] == "error" for each in findings) else 0


async def _ask(loaded: Loaded) -> list[dict[str, Any]]:
    async with open_admin(loaded) as admin:
        findings: list[dict[str, Any]] = await admin.doctor()
        return findings


def _environment(loaded: Loaded) -> list[dict[str, Any]]:
    """``TF_`` variables that mean nothing to us: mostly another program's."""
    return [
        {
            "check": "settings",
            "severity": "ok",
            "subject": name,
            "message": "is no setting of ours and is ignored",
        }
        for name in loaded.ignored
    ]
