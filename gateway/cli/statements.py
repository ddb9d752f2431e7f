"""``statements close|show|export`` and ``verify``: months closed, read, and checked by anybody."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.client import Admin, ask
from gateway.cli.output import CommandFailed, print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded
from quotas.money import format_amount

COLUMNS = ("number", "kind", "party", "month", "currency")
LINES = ("model", "price_version", "meter", "units", "amount")


@click.group(help="Close months, show statements, export them signed.")
def statements() -> None:
    """The group."""


@statements.command(cls=SettingsCommand, help="Close MONTH (2026-11) of a tenant or publisher.")
@click.argument("party")
@click.argument("month")
@click.option("--publisher", is_flag=True, help="PARTY is a publisher; default: a tenant.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def close(loaded: Loaded, *, party: str, month: str, publisher: bool, as_json: bool) -> None:
    kind = "publisher" if publisher else "tenant"
    body = {"kind": kind, "party": party, "month": month}
    made = _ask(loaded, "POST", "/admin/v1/statements", body)["data"]
    if as_json:
        print_json(made)
        return
    for each in made:
        click.echo(
            f"statement {each['number']}: {_amount(each['charged_nano'])} {each['currency']}"
        )
    if not made:
        click.echo(f"closed; nothing was booked in {month}")


@statements.command(cls=SettingsCommand, help="Every statement; or one, line by line.")
@click.argument("number", required=False, type=int)
@click.option("--preview", metavar="PARTY", help="This party's open month so far, unclosed.")
@click.option("--publisher", is_flag=True, help="PARTY is a publisher; default: a tenant.")
@click.option("--month", metavar="MONTH", help="Of the preview; default: this one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(
    loaded: Loaded,
    *,
    number: int | None,
    preview: str | None,
    publisher: bool,
    month: str | None,
    as_json: bool,
) -> None:
    if number is None and preview is None:
        rows = ask(loaded, _every)
        if as_json:
            print_json(rows)
        else:
            print_table(
                rows, COLUMNS, "no statements; close a month: tokenfactory statements close"
            )
        return
    if preview is not None:
        kind = "publisher" if publisher else "tenant"
        params = {"party": preview, "kind": kind} | ({"month": month} if month else {})
        found = _ask(loaded, "GET", "/admin/v1/statements/preview", params=params)["data"]
    else:
        found = [_ask(loaded, "GET", f"/admin/v1/statements/{number}")["statement"]]
    if as_json:
        print_json(found)
        return
    for statement in found:
        _show(statement)


@statements.command(cls=SettingsCommand, help="The signed file of a statement, or its FOCUS rows.")
@click.argument("number", type=int)
@click.option(
    "--focus", type=click.Choice(["csv", "jsonl"]), help="FOCUS 1.2 rows in place of the file."
)
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False), help="Default: print it.")
@click.pass_obj
def export(loaded: Loaded, *, number: int, focus: str | None, out: str | None) -> None:
    if focus is not None:
        data = ask(loaded, lambda admin: _focus(admin, number, focus))
    else:
        said = _ask(loaded, "GET", f"/admin/v1/statements/{number}")
        data = msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"
    if out is None:
        click.echo(data.decode(), nl=False)
    else:
        Path(out).write_bytes(data)
        click.echo(f"wrote {out}", err=True)


@click.command(help="Check a signed statement, offline: signature and sums.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--key", metavar="FINGERPRINT", help="The signer's; another one fails.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def verify(*, file: str, key: str | None, as_json: bool) -> None:
    # Imported here: nothing else of the command line needs them.
    from gateway import signing  # noqa: PLC0415

    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from None
    try:
        statement, public_key = signing.verify(data)
    except signing.NotGenuine as wrong:
        raise CommandFailed(f"{file}: {wrong}") from None
    fingerprint = signing.fingerprint(public_key)
    if key is not None and key.replace(":", "").lower() != fingerprint:
        raise CommandFailed(f"{file}: signed by {fingerprint}, expected {key}")
    if as_json:
        print_json({"number": statement.number, "signed_by": fingerprint, "genuine": True})
        return
    click.echo(
        f"statement {statement.number} of {statement.party}, {statement.period}: "
        f"{_amount(statement.charged_nano)} {statement.currency}; it adds up"
    )
    trusted = "as expected" if key else "compare it with the operator's, or give --key"
    click.echo(f"signed by {fingerprint} ({trusted})")


async def _every(admin: Admin) -> list[Any]:
    """Every statement, page by page."""
    rows: list[Any] = []
    cursor: str | None = "0"
    while cursor is not None:
        page = await admin.ask("GET", "/admin/v1/statements", params={"cursor": cursor})
        rows += page["data"]
        cursor = page["next"]
    return rows


async def _focus(admin: Admin, number: int, form: str) -> bytes:
    path = f"/admin/v1/statements/{number}"
    return (await admin.raw(path, {"format": f"focus-{form}"}))[0]


def _ask(
    loaded: Loaded,
    method: str,
    path: str,
    body: Any = None,
    params: dict[str, str] | None = None,
) -> Any:
    return ask(loaded, lambda admin: admin.ask(method, path, body, params))


def _show(statement: Any) -> None:
    click.echo(
        f"{statement['kind']} {statement['party']}, {statement['period']}, "
        f"{statement['records']} records"
    )
    lines = [line | {"amount": _amount(line["amount_nano"])} for line in statement["lines"]]
    print_table(lines, LINES, "no lines")
    click.echo(f"charged {_amount(statement['charged_nano'])} {statement['currency']}")
    for account, nano in sorted(statement["closing"].items()):
        click.echo(f"{account} {_amount(nano)}")


def _amount(nano: int) -> str:
    return format_amount(nano)
