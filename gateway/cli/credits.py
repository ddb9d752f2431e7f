"""``credits add|reverse|show``: money in, for one tenant."""

from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.client import ask
from gateway.cli.output import print_json, print_table
from gateway.cli.settings_options import SettingsCommand
from gateway.settings import Loaded

COLUMNS = (
    "reference",
    "kind",
    "amount",
    "left",
    "currency",
    "priority",
    "given",
    "expires",
    "reversed",
)


@click.group(help="Give a tenant credit, take it back, show what is left.")
def credits() -> None:  # noqa: A001 -- the command's name
    """The group."""


@credits.command(cls=SettingsCommand, help="Credit TENANT with AMOUNT, such as 25.00.")
@click.argument("tenant")
@click.argument("amount")
@click.option("--reference", required=True, help="The payment's name elsewhere; once a tenant.")
@click.option("--promotional", is_flag=True, help="Given, not paid: used first, no sale.")
@click.option("--currency", metavar="USD", help="Default: the contract's.")
@click.option("--expires", metavar="DATE", help="Last day it can be used.")
@click.option("--priority", type=int, help="Lower is used earlier; default 100.")
@click.option("--idempotency-key", metavar="KEY", help="The same key is credited once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def add(
    loaded: Loaded,
    *,
    tenant: str,
    amount: str,
    reference: str,
    promotional: bool,
    currency: str | None,
    expires: str | None,
    priority: int | None,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    body: dict[str, Any] = {"amount": amount, "reference": reference}
    body["kind"] = "promotional" if promotional else "paid"
    asked = {"currency": currency, "expires": expires, "priority": priority}
    body |= {name: value for name, value in asked.items() if value is not None}
    headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
    path = f"/admin/v1/tenants/{tenant}/credits"
    _say(_ask(loaded, "POST", path, body, headers), as_json=as_json)


@credits.command(cls=SettingsCommand, help="Take a credit of TENANT back, whole.")
@click.argument("tenant")
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def reverse(loaded: Loaded, *, tenant: str, reference: str, as_json: bool) -> None:
    path = f"/admin/v1/tenants/{tenant}/credits/reverse"
    _say(_ask(loaded, "POST", path, {"reference": reference}), as_json=as_json)


@credits.command(cls=SettingsCommand, help="What TENANT may spend, and every credit it got.")
@click.argument("tenant")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@click.pass_obj
def show(loaded: Loaded, *, tenant: str, as_json: bool) -> None:
    found = _ask(loaded, "GET", f"/admin/v1/tenants/{tenant}/credits")
    if as_json:
        print_json(found)
        return
    rows = [
        row | {name: _time(row[f"{name}_ms"]) for name in ("given", "expires", "reversed")}
        for row in found["credits"]
    ]
    print_table(rows, COLUMNS, "no credits")
    _say_balance(found["balance"])


def _ask(
    loaded: Loaded, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Any:
    return ask(loaded, lambda admin: admin.ask(method, path, body, headers=headers))


def _time(unix_ms: int | None) -> str | None:
    """UTC, to the second."""
    if unix_ms is None:
        return None
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _say(done: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        _say_balance(done["balance"])


def _say_balance(balance: Any) -> None:
    line = balance["credit_line"]
    click.echo(
        f"available {balance['available']} {balance['currency']} "
        f"(granted {balance['granted']}, owed {balance['owed']}"
        f"{'' if line is None else f', credit line {line}'})"
    )
